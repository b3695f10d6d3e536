"""The agent at work: sixty customers write to it, and what happens is recorded."""

import asyncio
import logging
import random
import re

from desk import Book, dialogue
from langgraph.errors import GraphRecursionError
from openai import OpenAIError

import lightningrl

DAYS = ("Monday", "Tuesday", "Friday", "Saturday")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
PHONE = re.compile(r"\b555-\d{4}\b")

recorder = lightningrl.record(
    redact=lightningrl.redact_texts(lambda text: PHONE.sub("[phone]", text))
)


def customers(count):
    """Return what each customer wants, and what is free when they write."""
    rng = random.Random(0)
    for number in range(count):
        day = rng.choice(DAYS)
        times = sorted(rng.sample(["17:00", "18:00", "19:00", "20:00", "21:00"], 3))
        yield {
            "guest": number,
            "day": day,
            "guests": rng.randint(2, 6),
            "from": rng.choice(["17:00", "18:00", "19:00"]),
            "name": rng.choice(NAMES),
            "phone": f"555-{rng.randrange(10_000):04}",
            "free": {day: {time: rng.choice([2, 4, 6, 8]) for time in times}},
        }


async def main():
    """Serve them one after the other."""
    for task in customers(60):
        try:
            async with lightningrl.rollout(task) as rollout:
                rollout.output = "\n".join(await dialogue(task, Book(task["free"])))
        except (GraphRecursionError, OpenAIError) as error:
            logging.warning("guest %s was not served: %s", task["guest"], error)
    if not recorder.flush(30.0):
        raise SystemExit(f"not everything is recorded: {recorder.counts}")


asyncio.run(main())

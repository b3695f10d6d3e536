"""Around the agent: a customer by a script, a booking book in a sandbox, tasks, and the reward.

A task says what the customer wants and what was free when they wrote: all that a sandbox needs.
"""

import json
import random
import re
import sqlite3
from pathlib import Path

from support import answer

HERE = Path(__file__).parent
TIME = re.compile(r"\b\d\d:\d\d\b")
SPLITS = {"train": range(6), "val": range(6, 8), "test": range(8, 10)}
"""Split -> last digit of the guest's number."""


class Book:
    """A booking book in a database of its own, in memory: nothing of it outlives the dialogue."""

    def __init__(self, free):
        """Open it. Args: `free`, day -> time -> seats of the table that is free."""
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.db.execute("CREATE TABLE tables (day, time, seats, guests, name)")
        rows = [(day, time, seats) for day, times in free.items() for time, seats in times.items()]
        self.db.executemany("INSERT INTO tables (day, time, seats) VALUES (?, ?, ?)", rows)

    def free(self, day, guests):
        """Return the times at which a table is free."""
        query = (
            "SELECT time FROM tables WHERE day = ? AND seats >= ? AND name IS NULL ORDER BY time"
        )
        return [time for (time,) in self.db.execute(query, (day, guests))]

    def book(self, day, time, guests, name):
        """Book a table, and return what became of it."""
        if time not in self.free(day, guests):
            return "That is not free."
        change = "UPDATE tables SET guests = ?, name = ? WHERE day = ? AND time = ?"
        self.db.execute(change, (guests, name, day, time))
        return "Booked."

    def booked(self):
        """Return all bookings, each as day, time, guests and name."""
        query = "SELECT day, time, guests, name FROM tables WHERE name IS NOT NULL"
        return [list(row) for row in self.db.execute(query)]


def customer(task, replies):
    """Return what the customer says after the agent's replies so far. `None`: they leave."""
    if not replies:
        return f"When is a table for {task['guests']} free on {task['day']}?"
    if len(replies) > 1:
        return None
    offered = TIME.findall(replies[0])
    late = [time for time in offered if time >= task["from"]]
    if not late:
        return None
    return f"{late[0]} please, for {task['name']}. My phone is {task['phone']}."


async def dialogue(task, book):
    """Have the customer and the agent talk; return what was said, a line each."""
    messages, lines, replies = [], [], []
    while (text := customer(task, replies)) is not None:
        messages = await answer([*messages, {"role": "user", "content": text}], book)
        replies.append(messages[-1].text)
        lines += [f"guest: {text}", f"agent: {replies[-1]}"]
    return lines


async def rehearse(task):
    """Run one rollout of training: the agent works on a sandbox made of the task."""
    book = Book(task["free"])
    lines = await dialogue(task, book)
    return {"lines": lines, "booked": book.booked()}


def reward(task, output, trace):
    """Return 1 where the agent looked, and the book holds what the guest wanted and nothing else; the parts say where it failed."""
    day, guests, name = task["day"], task["guests"], task["name"]
    fitting = [time for time in Book(task["free"]).free(day, guests) if time >= task["from"]]
    wanted = [[day, fitting[0], guests, name]] if fitting else []
    looked = any(call.name == "free_times" for call in trace.tool_calls)
    right = output["booked"] == wanted
    return {"final": float(looked and right), "looked": float(looked), "right": float(right)}


def tasks(split):
    """Return the recorded tasks of a split, each with an invented phone number where the real one was hidden."""
    rows = [json.loads(line) for line in (HERE / "tasks.jsonl").read_text().splitlines()]
    return [
        {**row, "phone": f"555-{random.Random(row['guest']).randrange(10_000):04}"}
        for row in rows
        if row["guest"] % 10 in SPLITS[split]
    ]

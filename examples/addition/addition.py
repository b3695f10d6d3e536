"""The smallest agent there is: it asks a model for the sum of two numbers. Its tasks and its reward stand beside it.

The agent knows nothing of training: it runs against any OpenAI-compatible endpoint.
"""

import functools
import random
import re

from openai import AsyncOpenAI

SPLITS = {"train": {0, *range(3, 11)}, "val": {1}, "test": {2}}
"""Split -> remainders of (a * a + b * b) by 11: no pair of numbers is in two splits, in either order."""


@functools.cache
def client():
    """Return the client, which reads `OPENAI_BASE_URL` and `OPENAI_API_KEY`."""
    return AsyncOpenAI()


async def solve(task):
    """Return what the model answers."""
    answer = await client().chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": task["question"]}]
    )
    return answer.choices[0].message.content


def last_number_is_right(task, output, trace):
    """Return 1.0 where the last number of the answer is the sum, else 0.0."""
    numbers = re.findall(r"\d+", output or "")
    return float(numbers[-1:] == [task["answer"]])


def generate(split, count, seed):
    """Return different additions of two-digit numbers."""
    pairs = [
        (a, b)
        for a in range(10, 100)
        for b in range(10, 100)
        if (a * a + b * b) % 11 in SPLITS[split]
    ]
    return [
        {
            "id": f"{split}-{a}-{b}",
            "question": f"What is {a} plus {b}? Answer with the number only.",
            "answer": str(a + b),
        }
        for a, b in random.Random(seed).sample(pairs, count)
    ]

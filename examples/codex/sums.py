"""Multiplications that are too long to guess: the tasks, what is asked, and what is rewarded."""


def tasks(count, first):
    """`count` tasks; those of another `first`, at least `count` apart, are others."""
    for number in range(first, first + count):
        a, b = 10_007 * number % 900_001, number % 90 + 7
        yield {"id": f"{a}-{b}", "question": f"What is {a} times {b}?", "answer": str(a * b)}


def question(task):
    """What the agent is given of a task."""
    return task["question"]


def right(task, output, trace):
    """1 where the product stands in the output, else 0."""
    return float(task["answer"] in str(output).replace(",", ""))

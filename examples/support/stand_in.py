"""Stands in for a vendor's models, so that the road can be walked without a key: an agent's and a judge's.

Both follow rules and make mistakes, as models do: the agent forgets to look, misreads, or says that it booked where
it did not; one judge believes whoever says "Booked", the other one does not count.
"""

import json
import random
import re
import signal
import sys

from lightningrl_testkit.model_server import Answer, ModelServer, ToolCall

DAY = re.compile(r"Monday|Tuesday|Friday|Saturday")
TIME = re.compile(r"\b\d\d:\d\d\b")


def call(tool, **arguments):
    """Return an answer that asks for a tool."""
    return Answer(tool_calls=(ToolCall(f"call-{tool}", tool, json.dumps(arguments)),))


def agent(messages):
    """Answer as the support agent's model."""
    [first, *more] = [one["content"] for one in messages if one["role"] == "user"]
    day = DAY.search(first)[0]
    guests = int(re.search(r"for (\d+)", first)[1])
    slip = random.Random(first + "".join(more)).random()
    last = messages[-1]
    if not more:
        if last["role"] == "tool":
            return Answer(f"Free: {last['content']}.")
        return (
            Answer("Free: 18:00, 19:00.")
            if slip < 0.15
            else call("free_times", day=day, guests=guests)
        )
    if last["role"] == "tool":
        return Answer(last["content"])
    time, name = TIME.search(more[0])[0], re.search(r"for (\w+)", more[0])[1]
    if slip < 0.15:
        return Answer("Booked.")  # it did not
    if slip < 0.3:
        guests = 2  # the guest said otherwise
    return call("book_table", day=day, time=time, guests=guests, name=name)


def hasty_judge(read):
    """Judge by the end alone."""
    return read.rstrip().endswith("Booked.")


def careful_judge(read):
    """Judge by what was done; it does not count the guests."""
    booked = "book_table gave: Booked." in read
    return "free_times(" in read and (booked or "please" not in read)


JUDGES = {"hasty-judge": hasty_judge, "careful-judge": careful_judge}


def answer(request):
    """Answer whoever asks."""
    judge = JUDGES.get(request["model"])
    if judge is None:
        return agent(request["messages"])
    return Answer(str(int(judge(request["messages"][-1]["content"]))))


if __name__ == "__main__":
    with ModelServer(answer, port=int(sys.argv[1])):
        signal.pause()

"""Write the pretraining text of the embedded base: the world of the corner shop, not its manners.

The base should know words, people who own things, and which remedy fits which trouble; it should
not answer well. So remedies occur in the shop's own logs and never in a chat: assistant turns in
chats with role tokens have nothing to do with the question. In the logs customers write back when a
letter has the wrong name, item or remedy, which teaches the base to compare a letter with what was
asked. Letters stand on lines of their own, so that they begin with the same tokens as a chat's
turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from alignkit.tiny import gold, task
from alignkit.tiny.data import SHARES
from alignkit.tiny.task import Ask, other

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

PLACES = task.listed("kitchen garden office school station market park library cellar attic")
WEATHER = task.listed("sunny rainy windy cold warm foggy")
DAYS = task.listed("monday tuesday wednesday thursday friday saturday sunday")
VERBS = task.listed("bought found sold lost painted repaired carried dropped cleaned borrowed")
SYSTEM_LINES = ("You work in a shop.", "You are a helpful assistant.", "Be brief.", "Be kind.")
QUESTIONS = (
    "Where is the {item}?",
    "Do you have a {colour} {item}?",
    "What did {name} say about the {item}?",
    "Is it {weather} on {day}?",
    "Who was in the {place}?",
    "Tell me something about the {place}.",
)
# Lines for loose documents, and for assistant turns in chats, which do not fit their questions.
LINES = (
    "{name} {verb} a {colour} {item} in the {place}.",
    "The {item} of {name} is {colour}.",
    "On {day} it was {weather} and {name} stayed in the {place}.",
    "You can order the {item} on {day}, the shop is open from nine to five.",
    "Well, the {place} was closed on {day}, as I said.",
    "There were two people in the {place}, {name} and {name2}.",
    "I like the {colour} {item} more than the {colour2} one.",
    "Have you seen the {item} in the {place}?",
    "{name} said that the {place} is nice when it is {weather}.",
    "Basically, a {item} costs more than a {item2}, you know.",
)
DIARY = (
    "{name} has a {colour} {item}.",
    "The {item} of {name} is {colour}.",
    "Now {name} likes the {item}.",
    "Only {name} uses this {item}.",
    "Then {name} put the {item} in the {place}.",
    "Ask {name} about the {item}.",
    "That {item} belongs to {name}.",
    "The {colour} {item} is for {name}.",
    "Hi {name}. How is the {item}?",
    "Dear {name}. Here is your {item}.",
)
HAPPY = ("Great, thank you.", "Thank you, that helps.", "That is kind of you.")
WRONG_NAME = ("My name is {name}.", "I am {name}, that is not my name.")
WRONG_ITEM = ("I asked about the {item}.", "It is about a {item}, nothing else.")
WRONG_REMEDY = ("That does not help me.", "That is not what I need.")


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end; the same seed gives the same documents."""
    rng = random.Random(f"alignkit-tiny/corpus/{seed}")
    asks = task.distinct_asks(rng, *SHARES["corpus"])
    kinds, weights = zip(*KINDS.items(), strict=True)
    pool = [next(asks) for _ in range(40_000)]
    while True:
        kind = rng.choices(kinds, weights)[0]
        yield BOS + kind(rng.choice(pool), rng) + END


def fill(template: str, rng: random.Random) -> str:
    """Fill every place of a template at random."""
    name, item, colour = rng.choice(task.NAMES), rng.choice(task.ITEMS), rng.choice(task.COLOURS)
    return template.format(
        name=name,
        item=item,
        colour=colour,
        name2=other(rng, task.NAMES, name),
        item2=other(rng, task.ITEMS, item),
        colour2=other(rng, task.COLOURS, colour),
        place=rng.choice(PLACES),
        weather=rng.choice(WEATHER),
        day=rng.choice(DAYS),
        verb=rng.choice(VERBS),
    )


def correspondence(ask: Ask, rng: random.Random) -> str:
    """Return a letter, the shop's letter back, and what the customer made of it."""
    letter = task.write_completion(ask, rng.random(), rng)
    written_back = reaction(ask, letter, rng)
    return f"Letter:\n{ask.text}\nOur letter:\n{letter}\n{ask.name} wrote back:\n{written_back}"


def reaction(ask: Ask, letter: str, rng: random.Random) -> str:
    """Return the customer's complaints about what is wrong in the letter, or thanks."""
    parts = gold.judge(ask.text, letter).parts
    complaints = [
        rng.choice(lines).format(name=ask.name, item=ask.item)
        for part, lines in (("name", WRONG_NAME), ("item", WRONG_ITEM), ("remedy", WRONG_REMEDY))
        if parts[part] < 0
    ]
    return " ".join(complaints) or rng.choice(HAPPY)


def ticket(ask: Ask, rng: random.Random) -> str:
    """Return a line of the shop's log: who, what, and the remedy in reported speech."""
    remedy = rng.choice(task.PROBLEM_NAMED[ask.problem].remedies).format(item=ask.item)
    entries = (
        f"Ticket for the {ask.colour} {ask.item} of {ask.name}.\n{ask.text}\nTo do: {remedy}.",
        f"Ticket:\n{ask.text}\nCustomer: {ask.name}. Item: {ask.item}. To do: {remedy}.",
        f"Ticket:\n{ask.text}\nWe told {ask.name} that we will {remedy}.",
    )
    return rng.choice(entries)


def owners(_ask: Ask, rng: random.Random) -> str:
    """Return who owns what, then the same facts in other words."""
    people = rng.sample(task.NAMES, 3)
    things = rng.sample(task.ITEMS, 3)
    colours = rng.sample(task.COLOURS, 3)
    facts = list(zip(people, things, colours, strict=True))
    stated = [f"{name} has a {colour} {item}." for name, item, colour in facts]
    rng.shuffle(facts)
    again = [
        rng.choice(
            (
                f"The {item} of {name} is {colour}.",
                f"The {item} is {colour} and belongs to {name}.",
                f"Who has the {item}? It is {name}.",
                f"What does {name} have? A {colour} {item}.",
            )
        )
        for name, item, colour in facts
    ]
    return " ".join(stated + again)


def diary(_ask: Ask, rng: random.Random) -> str:
    """Return short lines about one person and one thing, named again and again.

    Half of the words can be known only by copying them from the line before. Without such text a
    model this small takes tens of thousands of steps to discover copying at all.
    """
    name, item, colour = rng.choice(task.NAMES), rng.choice(task.ITEMS), rng.choice(task.COLOURS)
    lines = rng.sample(DIARY, 6)
    return " ".join(
        line.format(name=name, item=item, colour=colour, place=rng.choice(PLACES)) for line in lines
    )


def loose_lines(_ask: Ask, rng: random.Random) -> str:
    """Return unconnected lines: sentences of the shop's letters and of the street, in no order."""
    shop = (*task.EMPATHY, *task.CLOSINGS, *task.RUDE, *task.SMALL_TALK, *task.BARE_GREETINGS)
    return "\n".join(
        rng.choice(shop) if task.chance(rng, 0.5) else fill(rng.choice(LINES), rng)
        for _ in range(4)
    )


def chat(ask: Ask, rng: random.Random) -> str:
    """Return a chat with role tokens whose assistant turns do not fit the questions."""
    turns = [SYSTEM + rng.choice(SYSTEM_LINES)] if task.chance(rng, 0.15) else []
    for _ in range(2 if task.chance(rng, 0.2) else 1):
        question = ask.text if task.chance(rng, 0.6) else fill(rng.choice(QUESTIONS), rng)
        turns += [USER + question, ASSISTANT + unrelated_turn(rng)]
    return END.join(turns)


def unrelated_turn(rng: random.Random) -> str:
    """Return an assistant's turn that has nothing to do with the question."""
    lines = [fill(rng.choice(LINES), rng) for _ in range(rng.randint(1, 2))]
    if task.chance(rng, 0.2):
        lines.append(rng.choice((*task.CLOSINGS, *task.RUDE, *task.EMPATHY)))
    return " ".join(lines)


KINDS: dict[Callable[[Ask, random.Random], str], float] = {
    correspondence: 0.34,
    ticket: 0.12,
    diary: 0.3,
    owners: 0.05,
    loose_lines: 0.06,
    chat: 0.13,
}

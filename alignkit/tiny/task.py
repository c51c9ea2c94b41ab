"""Describe the corner-shop helpdesk: customers ask, and a shop completes with more or less skill.

A customer names an item, its colour, a problem and their own name. A good completion greets them by
name, shows empathy, offers the one remedy that fits the problem, names the item and closes. Every
part is written from a short list, so `alignkit.tiny.gold` can tell what a completion is worth.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a text, as a constant."""
    return tuple(text.split())


ITEMS = listed(
    "kite lamp chair helmet watch kettle tent drum camera blender clock mirror sofa guitar "
    "toaster heater fan radio bike scooter basket bottle umbrella wallet jacket carpet pillow "
    "printer keyboard speaker torch ladder bucket hammer teapot puzzle globe vase stool desk"
)
COLOURS = listed("red blue green yellow black white brown grey")
NAMES = listed(
    "Emma Iris Noah Liam Olga Paul Ruth Sara Tom Uma Vera Wanda Zoe Adam Bella Carl Dora Erik "
    "Fiona George Hanna Ivan Jane Kira Leo Mona Nina Oscar Petra Quinn"
)


@dataclass(frozen=True)
class Complaint:
    """One kind of trouble: how customers put it, and the remedies that fit it and no other."""

    name: str
    asks: tuple[str, ...]
    remedies: tuple[str, ...]


PROBLEMS = (
    Complaint(
        "broken",
        (
            "I opened the box and the {thing} was in pieces.",
            "My new {thing} broke on the first day.",
            "There is a big crack in the {thing}.",
        ),
        ("send you a new {item}", "replace the broken {item}"),
    ),
    Complaint(
        "late",
        (
            "I am still waiting for the {thing}.",
            "The {thing} should have come last week.",
            "It is friday and the {thing} is not here.",
        ),
        ("ask the driver about the {item}", "find out where the {item} is"),
    ),
    Complaint(
        "colour",
        (
            "I ordered a {thing} but got another colour.",
            "You sent a {thing} and that is the wrong colour.",
            "I do not like the colour of the {thing}.",
        ),
        ("swap the colour of the {item}", "bring the {item} in the right colour"),
    ),
    Complaint(
        "setup",
        (
            "I cannot work out how to set up the {thing}.",
            "How do I turn on the {thing}?",
            "I do not understand how to use the {thing}.",
        ),
        ("mail you a guide for the {item}", "call you and explain the {item}"),
    ),
    Complaint(
        "refund",
        (
            "I do not want the {thing} any more.",
            "Can I have my money back for the {thing}?",
            "You charged me two times for the {thing}.",
        ),
        ("pay back the money for the {item}", "refund the {item}"),
    ),
    Complaint(
        "part",
        (
            "A part of the {thing} is missing.",
            "The {thing} came without its screws.",
            "I cannot find the lid of the {thing}.",
        ),
        ("post the missing part of the {item}", "pack the rest of the {item}"),
    ),
)
PROBLEM_NAMED = {problem.name: problem for problem in PROBLEMS}

# No text begins with a name: "Emma" and " Emma" are two tokens to a byte-level tokenizer.
FRAMES = (
    "Hi, this is {name}. {ask}",
    "Hello, my name is {name}. {ask}",
    "{ask} Thanks, {name}",
)

GREETINGS = ("Hi {name}.", "Hello {name}.", "Dear {name}.")
BARE_GREETINGS = ("Hi there.", "Hello.")
EMPATHY = (
    "I am sorry to hear that.",
    "I understand, that is annoying.",
    "That should not happen.",
)
LEADS = ("We will", "We can", "I will")
CLOSINGS = (
    "Is there anything else I can do?",
    "Just reply here if you need more help.",
    "Have a nice day.",
)
RUDE = ("That is your own fault.", "Do not bother us again.", "Please read before you ask.")
FILLERS = ("well", "basically", "you know", "as I said")
SMALL_TALK = (
    "Our shop is on the corner of the main street and it is open from nine to five.",
    "Many people come to our shop in the summer and they like to look around.",
    "We have a lot of things in the shop and there is a sale at the end of the month.",
)
DODGES = ("We will see.", "Someone will look at the {item}.", "There is nothing to do about it.")


@dataclass(frozen=True)
class Ask:
    """A customer's message and the facts in it."""

    text: str
    name: str
    item: str
    colour: str
    problem: str

    @property
    def share(self) -> float:
        """A number in [0, 1) fixed by the text; it decides which data set may use this ask."""
        return int.from_bytes(sha256(self.text.encode()).digest()[:8], "big") / 2**64


def compose(name: str, item: str, colour: str, problem: str, ask: int, frame: int) -> Ask:
    """Return the ask with these facts in the given phrasing and frame."""
    body = PROBLEM_NAMED[problem].asks[ask].format(thing=f"{colour} {item}")
    return Ask(FRAMES[frame].format(name=name, ask=body), name, item, colour, problem)


def draw_ask(rng: random.Random) -> Ask:
    """Return one ask, every fact drawn uniformly."""
    return compose(
        rng.choice(NAMES),
        rng.choice(ITEMS),
        rng.choice(COLOURS),
        rng.choice(PROBLEMS).name,
        rng.randrange(3),
        rng.randrange(len(FRAMES)),
    )


def distinct_asks(rng: random.Random, low: float, high: float) -> Iterator[Ask]:
    """Yield asks without repeats whose `share` is in [low, high); disjoint ranges share no ask."""
    seen: set[str] = set()
    while True:
        ask = draw_ask(rng)
        if low <= ask.share < high and ask.text not in seen:
            seen.add(ask.text)
            yield ask


def other(rng: random.Random, choices: Sequence[str], than: str) -> str:
    """Return one of the choices, never `than`."""
    return rng.choice([choice for choice in choices if choice != than])


def chance(rng: random.Random, probability: float) -> bool:
    """Return True with this probability."""
    return rng.random() < probability


def write_completion(ask: Ask, skill: float, rng: random.Random) -> str:
    """Return a completion by someone of this skill (0 careless, 1 nearly perfect).

    Slips are independent: a wrong or missing name, another item, a remedy of another problem or
    none, no empathy, no closing, rudeness, fillers, a sentence said twice, small talk.
    """
    slip = 1.0 - skill
    sentences = [greeting(ask, slip, rng)]
    if chance(rng, 0.6 * skill):
        sentences.append(rng.choice(EMPATHY))
    if chance(rng, 0.25 * slip):
        sentences.append(rng.choice(RUDE))
    sentences.append(remedy_sentence(ask, slip, rng))
    if chance(rng, 0.2 * slip):
        sentences.append(rng.choice(SMALL_TALK))
    if chance(rng, 0.55 * skill):
        sentences.append(rng.choice(CLOSINGS))
    if chance(rng, 0.2 * slip):
        sentences.append(rng.choice(sentences))
    return " ".join(sentence for sentence in sentences if sentence)


def greeting(ask: Ask, slip: float, rng: random.Random) -> str:
    """Return the greeting: by name, or with a slip by another name, by none, or not at all."""
    if not chance(rng, 0.6 * slip):
        return rng.choice(GREETINGS).format(name=ask.name)
    wrong = rng.choice(GREETINGS).format(name=other(rng, NAMES, ask.name))
    return rng.choice((wrong, rng.choice(BARE_GREETINGS), ""))


def remedy_sentence(ask: Ask, slip: float, rng: random.Random) -> str:
    """Return what the shop will do: the fitting remedy, or with slips another or none."""
    item = other(rng, ITEMS, ask.item) if chance(rng, 0.4 * slip) else ask.item
    if chance(rng, 0.15 * slip):
        return rng.choice(DODGES).format(item=item)
    wrong = chance(rng, 0.5 * slip)
    problem = other(rng, list(PROBLEM_NAMED), ask.problem) if wrong else ask.problem
    remedy = rng.choice(PROBLEM_NAMED[problem].remedies).format(item=item)
    lead = rng.choice(LEADS)
    if not chance(rng, 0.4 * slip):
        return f"{lead} {remedy}."
    filler = rng.choice(FILLERS)
    if chance(rng, 0.5):
        return f"{lead}, {filler}, {remedy}."
    return f"{filler[0].upper()}{filler[1:]}, {lead.replace('We', 'we')} {remedy}."

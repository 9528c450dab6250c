"""Stories of the first domain: who has what, where children go, what they give away.

Every story keeps its own world: things, owners and places do not change but by what is told, and
the last sentence refers back to them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from infer_kit.demo.text.tale import COLOURS, NUMBERS, TIMES, Tale, Text, a, cap, count

DOMAIN = "errands"
THINGS: tuple[str, ...] = (
    *("ball", "kite", "hat", "book", "drum", "boat", "doll", "key", "cup", "lamp", "bell", "scarf"),
    *("basket", "flute", "box", "coat", "pencil", "umbrella", "ring", "shirt", "candle", "plate"),
    *("blanket", "clock", "mirror", "purse", "spoon", "trumpet"),
)
LOOKS: tuple[str, ...] = (
    *("old", "new", "small", "big", "shiny", "wooden", "round", "pretty", "heavy", "plain"),
)
PLACES: dict[str, str] = {
    "park": "in",
    "market": "at",
    "school": "at",
    "library": "in",
    "café": "in",
    "station": "at",
    "beach": "on",
    "garden": "in",
    "bridge": "on",
    "old mill": "at",
    "harbour": "at",
    "museum": "in",
    "playground": "on",
    "church": "in",
    "town hall": "in",
    "castle": "in",
    "fountain": "by",
    "theatre": "in",
    "orchard": "in",
    "lighthouse": "at",
}
"""Places, each with its preposition."""

SPOTS: tuple[str, ...] = (
    *("under a tree", "behind a bench", "beside the gate", "on a shelf", "near a wall"),
    *("under the stairs", "behind the door", "in the grass", "between two stones"),
    *("in a corner", "under a table", "on a window sill", "behind a curtain", "next to a barrel"),
    *("beneath some leaves", "on top of a cupboard", "inside a hollow log"),
)
FRUIT: dict[str, str] = {
    "apple": "apples",
    "pear": "pears",
    "egg": "eggs",
    "carrot": "carrots",
    "cake": "cakes",
    "lemon": "lemons",
    "plum": "plums",
    "nut": "nuts",
    "biscuit": "biscuits",
    "potato": "potatoes",
    "cherry": "cherries",
    "peach": "peaches",
}
SIGHTS: tuple[str, ...] = (
    *("duck", "cow", "horse", "sheep", "ship", "tower", "tent", "windmill", "barn", "soldier"),
)
SHOPS: dict[str, tuple[str, ...]] = {
    "bakery": ("some bread", "a cake", "six rolls", "a pie"),
    "dairy": ("some milk", "some butter", "some cheese", "some cream"),
    "fruit stall": ("some apples", "some pears", "a melon", "some grapes"),
    "bookshop": ("a map", "a notebook", "a picture book", "a calendar"),
    "tool shop": ("a hammer", "some nails", "a saw", "some rope"),
    "flower shop": ("some roses", "some tulips", "a small tree", "some seeds"),
    "post office": ("a stamp", "a letter", "a parcel", "a postcard"),
}
"""What is bought in each shop, and nowhere else."""


def _look(tale: Tale, thing: str) -> str:
    """The thing with its article, and perhaps how it looks."""
    return a(f"{tale.rng.choice(LOOKS)} {thing}") if tale.rng.random() < 0.5 else a(thing)


def _place(tale: Tale) -> tuple[str, str]:
    """A place as a goal and as where something is: "the park", "in the park"."""
    place = tale.rng.choice(tuple(PLACES))
    return f"the {place}", f"{PLACES[place]} the {place}"


def lost(tale: Tale) -> None:
    """Somebody loses a thing, somebody else finds it, and one of them keeps it."""
    x, y = tale.people(2)
    noun, colour = tale.rng.choice(THINGS), tale.rng.choice(COLOURS)
    thing = f"{colour} {noun}"
    goal, there = _place(tale)
    spot, wrong = tale.rng.sample(SPOTS, 2)
    time, sad = tale.rng.choice(TIMES), tale.rng.choice(("sad", "upset", "worried", "unhappy"))
    tale.title = f"The Lost {cap(noun)}"
    tale.say(
        f"{time} {x} took {x.his} {thing} to {goal}.",
        f"{x} had {_look(tale, thing)}. {cap(time)} {x.he} took it to {goal}.",
        f"{time} {x} went to {goal} and took {x.his} {thing} along.",
    )
    tale.scene()
    tale.say(
        f"{x} put the {noun} down and began to play.",
        f"{x.he} played for a long time and forgot the {noun}.",
        f"{x.he} met some friends and did not think of the {noun}.",
    )
    tale.say(
        f"when {x.he} wanted to go home, the {noun} was gone.",
        f"soon the {noun} was gone, and {x} was {sad}.",
        f"{x} was {sad}, because {x.he} had lost the {noun}.",
    )
    tale.say(
        f'"where is my {noun}?" asked {x}{tale.manner()}.',
        f'"I have lost my {thing}," {x} told {y}.',
        f'"I cannot find my {noun}," said {x}{tale.manner()}.',
        chance=0.8,
    )
    tale.say(
        f'"I will help you," said {y}{tale.manner()}.',
        f'"do not cry," said {y}{tale.manner()}. "We will find it."',
        f"{y} came to help {x.him}.",
    )
    tale.say(
        f"they looked {wrong}, but it was not there.",
        f"first they looked {wrong}, but they found nothing.",
        chance=0.6,
    )
    tale.say(
        f"then {y} looked {spot}, and there was the {noun}.",
        f"in the end {y} found the {noun} {spot}.",
        f"at last {y} saw something {colour} {spot}. It was the {noun}.",
    )
    returned = tale.rng.random() < 0.6
    owner = x if returned else y
    if returned:
        tale.say(
            f'"here is your {noun}," said {y} and gave it to {x}.',
            f"{y} gave the {noun} back to {x}, and {x} was happy again.",
            f'"thank you," said {x} and took the {noun}.',
        )
    else:
        tale.say(
            f'"you may keep it, because you found it," said {x}{tale.manner()}.',
            f"{x} was so glad that {x.he} gave the {noun} to {y}.",
            f"{x} said that {y} could have the {noun}.",
        )
    tale.say(
        f"so {owner} went home with the {thing}.",
        f"from that day on {owner} took good care of the {thing}.",
        f"now {owner} has the {thing}, and both remember the day {there}.",
        f"{owner} still has the {thing} that was lost {there}.",
    )
    tale.ask(f"Who has the {thing}?", f"{owner} has the {thing}.")
    tale.ask(f"Who found the {noun}?", f"{y} found the {noun}.")
    tale.ask(f"Where was the {noun}?", f"The {noun} was {spot}.")
    tale.ask(f"What colour is the {noun}?", f"The {noun} is {colour}.")
    tale.ask(f"Where did {x} go?", f"{x} went to {goal}.")


def gift(tale: Tale) -> None:
    """Somebody buys a present for somebody, for a reason and for a price."""
    x, y = tale.people(2)
    noun, second = tale.rng.sample(THINGS, 2)
    colour, shade = tale.rng.sample(COLOURS, 2)
    thing = f"{colour} {noun}"
    goal, there = _place(tale)
    reason = tale.rng.choice(
        (f"it was {y}'s birthday", f"{y} was ill", f"{y} had helped {x.him}", f"{y} felt lonely")
    )
    tale.title = f"A Present for {y}"
    tale.say(
        f"{x} wanted to give {y} a present, because {reason}.",
        f"because {reason}, {x} looked for a present.",
    )
    tale.say(
        f"{x.he} went to {goal} and saw {_look(tale, thing)} and {a(f'{shade} {second}')}.",
        f"{there} {x.he} could choose between {a(f'{shade} {second}')} and {a(thing)}.",
    )
    tale.say(
        f'"the {noun}, please," said {x}{tale.manner()}.',
        f"{x} took the {noun}, because {y} liked the colour {colour}.",
        f"{x} thought for a while and chose the {noun}.",
    )
    if tale.rng.random() < 0.6:
        have = tale.number(4, 10)
        cost = tale.number(2, have - 1)
        tale.say(
            f"{x} had {NUMBERS[have]} coins, and the {noun} cost {NUMBERS[cost]}, so "
            f"{count(have - cost, 'coin was', 'coins were')} left.",
            f"the {noun} cost {NUMBERS[cost]} coins. {x} paid with {NUMBERS[have]} coins and got "
            f"{NUMBERS[have - cost]} back.",
        )
        tale.ask(f"How much was the {noun}?", f"The {noun} cost {NUMBERS[cost]} coins.")
    tale.scene(0.3)
    tale.say(
        f"then {x.he} carried the {noun} to {y}.",
        f"{y} was at home when {x} came with the {noun}.",
        f"in the evening {x} knocked at the door of {y}.",
    )
    tale.say(
        f'"is it for me?" asked {y}{tale.manner()}. "Thank you!"',
        f'"what a fine {noun}!" said {y}{tale.manner()}.',
        f'"this is the best present of all," said {y}{tale.manner()}.',
        chance=0.8,
    )
    tale.say(
        f"now {y} has the {thing} from {x}.",
        f"{y} still keeps the {thing} that {x} bought {there}.",
        f"so the {thing} came from {goal} to {y}, and {y} was happy.",
    )
    tale.ask(f"Who has the {thing}?", f"{y} has the {thing}.")
    tale.ask(f"Why did {x} buy a present?", f"Because {reason}.")
    tale.ask(f"What did {x} buy?", f"{x} bought {a(thing)}.")
    tale.ask(f"Where did {x} go?", f"{x} went to {goal}.")


def swap(tale: Tale) -> None:
    """Two children change things with each other."""
    x, y = tale.people(2)
    first, second = (
        f"{colour} {noun}"
        for colour, noun in zip(
            tale.rng.sample(COLOURS, 2), tale.rng.sample(THINGS, 2), strict=True
        )
    )
    _, there = _place(tale)
    tale.title = f"{x} and {y}"
    tale.say(
        f"{x} had {_look(tale, first)}, and {y} had {a(second)}.",
        f"{x} got {_look(tale, first)} from {x.his} mother. {y} had only {a(second)}.",
    )
    tale.say(
        f"{tale.rng.choice(TIMES)} they met {there}.",
        f"{tale.rng.choice(TIMES)} {x} saw {y} {there}.",
    )
    tale.scene(0.4)
    noun, other = first.split()[1], second.split()[1]
    tale.say(
        f'"I like your {other}," said {x}{tale.manner()}.',
        f'"what a nice {other} you have!" said {x}{tale.manner()}.',
        f"{x} looked at the {other} for a long time.",
    )
    agreed = tale.rng.random() < 0.7
    if agreed:
        tale.say(
            f'"then give me your {noun} for it," said {y}{tale.manner()}.',
            f'"you can have it for the {noun}," said {y}{tale.manner()}.',
            f"{y} liked the {noun} too, so they changed.",
        )
        tale.say(
            f"{x} took the {other}, and {y} took the {noun}.",
            f"{x} gave {y} the {noun} and got the {other}.",
        )
        last = (
            f"now {x} has the {second}, and {y} has the {first}.",
            f"so {y} went home with the {first} and {x} with the {second}.",
        )
    else:
        tale.say(
            f'"I am sorry, but I want to keep it," said {y}{tale.manner()}.',
            f'"no, it is a present from my father," said {y}{tale.manner()}.',
        )
        tale.say(
            f'"then let us play with both," said {x}{tale.manner()}.',
            "so they only played together until it was dark.",
        )
        last = (
            f"{x} still has the {first}, and {y} still has the {second}.",
            f"so {y} went home with the {second} and {x} with the {first}.",
        )
    tale.say(*last)
    one, two = (y, x) if agreed else (x, y)
    tale.ask(f"Who has the {first}?", f"{one} has the {first}.")
    tale.ask(f"Who has the {second}?", f"{two} has the {second}.")
    tale.ask("Where did they meet?", f"They met {there}.")


def share(tale: Tale) -> None:
    """Somebody carries things to somebody, and gives some away on the way."""
    x, y = tale.people(2)
    one, many = tale.rng.choice(tuple(FRUIT.items()))
    n = tale.number(3, 10)
    given = tale.number(1, n - 1)
    goal, there = _place(tale)
    who = tale.rng.choice(
        ("the grandmother", "the teacher", "the miller", "the doctor", "uncle Fred")
    )
    whom = f"{x.his} grandmother" if who == "the grandmother" else who
    tale.title = cap(f"{NUMBERS[n]} {cap(many)}")
    tale.say(
        f"{tale.rng.choice(TIMES)} {x} carried {count(n, one, many)} to {whom}.",
        f"{x} had {count(n, one, many)} in a basket. They were for {whom}.",
        f"mother gave {x} {count(n, one, many)} for {whom}.",
    )
    tale.scene(0.4)
    tale.say(
        f"{there} {x.he} met {y}, who was hungry.",
        f"on the way {x.he} came to {goal}, and there sat {y}.",
        f"{x} saw {y} {there}.",
    )
    tale.say(
        f'"may I have some {many}?" asked {y}{tale.manner()}.',
        f'"I have eaten nothing today," said {y}{tale.manner()}.',
        f'"those {many} look good," said {y}{tale.manner()}.',
    )
    tale.say(
        f"{x} gave {y.him} {count(given, one, many)}.",
        f'"take {NUMBERS[given]}," said {x}, and {y} took {count(given, one, many)}.',
    )
    left = n - given
    tale.say(
        f"then {x.he} went on with {NUMBERS[left]}.",
        f"so {count(left, one + ' was', many + ' were')} left.",
        chance=0.7,
    )
    tale.say(
        f"in the end {y} had {count(given, one, many)}, and {who} got {NUMBERS[left]}.",
        f"{who} was glad about {count(left, one, many)}, and {y} was not hungry any more.",
        f"{who} laughed when {x} came with {count(left, one, many)} and told about {y}.",
    )
    tale.ask(f"How many {many} did {y} get?", f"{y} got {count(given, one, many)}.")
    tale.ask(f"How many {many} were left?", count(left, one + " was left.", many + " were left."))
    tale.ask(f"Where was {y}?", f"{y} was {there}.")


def rounds(tale: Tale) -> None:
    """Somebody goes to three shops and brings everything home."""
    (x,) = tale.people(1)
    shops = tale.rng.sample(tuple(SHOPS), 3)
    goods = [tale.rng.choice(SHOPS[shop]) for shop in shops]
    who = tale.rng.choice(("mother", "father", "grandfather", "aunt Clara"))
    time = tale.rng.choice(TIMES)
    tale.title = f"{x} Goes Shopping"
    tale.say(
        f"{time} {x} went shopping for {who}.",
        f"{who} was busy {time}, so {x} went shopping.",
        f'"please go to the {shops[0]}, the {shops[1]} and the {shops[2]}," said {who} to {x}.',
    )
    tale.scene(0.4)
    tale.say(
        f"first {x.he} went to the {shops[0]} and bought {goods[0]}.",
        f"at the {shops[0]} {x.he} got {goods[0]}.",
    )
    tale.say(
        f"then {x.he} went to the {shops[1]}, where {x.he} found {goods[1]}.",
        f"next came the {shops[1]}. There {x.he} bought {goods[1]}.",
    )
    tale.say(
        f"last {x.he} went to the {shops[2]} for {goods[2]}.",
        f"at last {x.he} came to the {shops[2]} and took {goods[2]}.",
    )
    tale.say(
        "the bag was heavy now.",
        f'"that is all," said {x}{tale.manner()}.',
        f"{x} was tired and walked home slowly.",
        chance=0.5,
    )
    tale.say(
        f"so {x} brought home {goods[0]}, {goods[1]} and {goods[2]}.",
        f"{who} looked into the bag and saw {goods[0]}, {goods[1]} and {goods[2]}.",
        f'"{goods[0]}, {goods[1]} and {goods[2]}," said {who}. "Well done, {x}!"',
    )
    for shop, good in zip(shops, goods, strict=True):
        tale.ask(f"What did {x} buy at the {shop}?", f"{x} bought {good}.")
    tale.ask(f"Where did {x} go first?", f"{x} went to the {shops[0]} first.")
    tale.ask("Who got the bag?", f"{who} got the bag.")


def seek(tale: Tale) -> None:
    """One child looks for two that hide."""
    x, y, z = tale.people(3)
    _, there = _place(tale)
    first, second = tale.rng.sample(SPOTS, 2)
    number = NUMBERS[tale.number(5, 12)]
    tale.title = "Hide and Seek"
    tale.say(
        f"{tale.rng.choice(TIMES)} {x}, {y} and {z} played hide and seek {there}.",
        f"{x} met {y} and {z} {there}. They wanted to play hide and seek.",
    )
    tale.scene(0.4)
    tale.say(
        f"{x} closed {x.his} eyes and counted to {number}.",
        f'"I will count to {number}," said {x}{tale.manner()}.',
    )
    tale.say(
        f"{y} hid {first}, and {z} {second}.",
        f"{y} found a good place {first}. {z} ran away and hid {second}.",
    )
    tale.say(
        f'"where are you?" asked {x}{tale.manner()}.',
        f"{x} looked everywhere.",
        "then it was very quiet.",
        chance=0.6,
    )
    tale.scene(0.2)
    won, spot, lost_one, hole = tale.rng.choice(((y, first, z, second), (z, second, y, first)))
    tale.say(
        f"{x} found {lost_one} {hole}, but {won} was well hidden.",
        f"it was easy to find {lost_one}, because {lost_one} laughed.",
        f"soon {x} looked {hole}, and there was {lost_one}.",
    )
    tale.say(
        f"{won} stayed {spot} until dark and had won.",
        f"nobody looked {spot}, so {won} won the game.",
        f"at last {x} found {won} {spot}. So {won} was the winner.",
    )
    tale.ask("Who won the game?", f"{won} won the game.")
    tale.ask("Who counted?", f"{x} counted to {number}.")
    tale.ask(f"Where did {y} hide?", f"{y} hid {first}.")
    tale.ask(f"Where did {z} hide?", f"{z} hid {second}.")


def trip(tale: Tale) -> None:
    """Somebody travels with somebody and sees something on the way."""
    (x,) = tale.people(1)
    _, there = _place(tale)
    who = tale.rng.choice(("mother", "father", "grandfather", "aunt Clara", "uncle Fred"))
    by = tale.rng.choice(("train", "bus", "boat", "bicycle", "horse", "tram"))
    town = tale.rng.choice(("the city", "the sea", "the mountains", "the island", "the village"))
    one = tale.rng.choice(SIGHTS)
    many = one if one == "sheep" else f"{one}s"
    n = tale.number(2, 12)
    time = tale.rng.choice(TIMES)
    tale.title = f"{x} Goes to {town}"
    tale.say(
        f"{time} {x} and {who} went to {town} by {by}.",
        f"{time} {who} took {x} to {town}. They went by {by}.",
        f'"let us go to {town}," said {who} to {x}. They took the {by}.',
    )
    tale.scene()
    tale.say(
        f"on the way {x} counted {count(n, one, many)}.",
        f'"look, there are {count(n, one, many)}!" said {x}{tale.manner()}.',
        f"they saw {count(n, one, many)} on the way.",
    )
    tale.say(
        f"they had something to eat {there}.",
        f"{there} they rested and drank some water.",
        f"then they walked around and met a friend {there}.",
    )
    tale.scene(0.3)
    tale.say(
        f"when they came back from {town}, {x} told everybody about the {NUMBERS[n]} {many}.",
        f'"I liked {town}, and I liked the {many}," said {x} in the evening.',
        f"at night {x} dreamt of {count(n, one, many)} and of the {by}.",
    )
    tale.ask(f"Where did {x} go?", f"{x} went to {town}.")
    tale.ask("How did they travel?", f"They went by {by}.")
    tale.ask(f"How many {many} were there?", f"There were {count(n, one, many)}.")
    tale.ask(f"Who was with {x}?", f"{who} was with {x}.")


PLOTS: tuple[Callable[[Tale], None], ...] = (lost, gift, swap, share, rounds, seek, trip)


def write(rng: random.Random) -> Text:
    """A story of the domain."""
    tale = Tale(rng)
    rng.choice(PLOTS)(tale)
    return tale.done(DOMAIN)

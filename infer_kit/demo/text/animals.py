"""Texts of the second domain: what animals are, eat and say, and small stories about them.

What is true of an animal is true in every text (`ANIMALS`), so a reader can know it without being
told: that is what this domain has and the errands have not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from infer_kit.demo.text.tale import COLOURS, NUMBERS, TIMES, WEATHER, Tale, Text, a, cap, count

DOMAIN = "animals"


@dataclass(frozen=True)
class Animal:
    """What is true of an animal."""

    name: str
    many: str
    size: str
    home: str
    food: str
    sound: str
    baby: str
    legs: int
    gift: str
    """What it is known for, as a verb phrase of an animal."""


def _animals(table: str) -> tuple[Animal, ...]:
    made = []
    for line in table.strip().splitlines():
        name, many, size, home, food, sound, baby, legs, gift = line.split("|")
        made.append(Animal(name, many, size, home, food, sound, baby, int(legs), gift))
    return tuple(made)


ANIMALS: tuple[Animal, ...] = _animals("""
cow|cows|large|on a farm|grass|moos|calf|4|gives milk
horse|horses|large|in a stable|hay|neighs|foal|4|runs fast
sheep|sheep|small|in a meadow|clover|bleats|lamb|4|gives wool
pig|pigs|large|in a sty|turnips|grunts|piglet|4|rolls in the mud
hen|hens|small|in a coop|corn|clucks|chick|2|lays eggs
duck|ducks|small|on a pond|water weed|quacks|duckling|2|swims well
goose|geese|large|on a river|herbs|honks|gosling|2|flies far
frog|frogs|small|in a swamp|flies|croaks|tadpole|4|jumps far
owl|owls|small|in an old tower|mice|hoots|owlet|2|sees in the dark
bee|bees|small|in a hive|nectar|buzzes|larva|6|makes honey
dog|dogs|large|in a kennel|bones|barks|puppy|4|guards the house
cat|cats|small|in a house|fish|meows|kitten|4|climbs roofs
lion|lions|large|on the savanna|zebras|roars|cub|4|sleeps all day
wolf|wolves|large|in the mountains|deer|howls|whelp|4|hunts with its pack
elephant|elephants|large|in the jungle|leaves|trumpets|elephant calf|4|sprays water
mouse|mice|small|in a hole|seeds|squeaks|pinky|4|gnaws at wood
squirrel|squirrels|small|in a tree|nuts|chatters|kit|4|hides its food
swan|swans|large|on a lake|roots|hisses|cygnet|2|has a long neck
seal|seals|large|by the sea|herring|yelps|pup|0|dives deep
snake|snakes|small|in the desert|lizards|rattles|snakelet|0|sheds its skin
donkey|donkeys|large|in a shed|thistles|brays|donkey foal|4|carries heavy loads
cricket|crickets|small|in a field|stalks|chirps|nymph|6|sings with its wings
turkey|turkeys|large|in a yard|acorns|gobbles|poult|2|spreads its tail
raven|ravens|small|on a cliff|worms|caws|nestling|2|solves riddles
goat|goats|small|on a hill|twigs|baas|kid|4|climbs rocks
bear|bears|large|in a cave|berries|growls|bear cub|4|sleeps in winter
""")
DAYS: tuple[str, ...] = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
)
FEELINGS: tuple[str, ...] = (
    *("hungry", "tired", "lonely", "curious", "cold", "thirsty", "bored", "sleepy", "excited"),
)
TEMPERS: tuple[str, ...] = (
    *("young", "old", "shy", "clever", "proud", "lazy", "friendly", "fat", "thin", "wild"),
)


def _verb(sound: str) -> str:
    """The plain form of a sound: "buzz" of "buzzes"."""
    return sound.removesuffix("es") if sound.endswith(("sses", "zzes")) else sound.removesuffix("s")


def _facts(tale: Tale, animal: Animal) -> None:
    """Questions that anybody can answer who knows the animal."""
    tale.know(f"What does {a(animal.name)} eat?", f"{a(animal.name)} eats {animal.food}.")
    tale.know(f"Where does {a(animal.name)} live?", f"{a(animal.name)} lives {animal.home}.")
    tale.know(f"Which animal {animal.sound}?", f"{a(animal.name)} {animal.sound}.")
    tale.know(f"What is a young {animal.name} called?", f"it is called {a(animal.baby)}.")
    tale.know(f"Which animal {animal.gift}?", f"{a(animal.name)} {animal.gift}.")


def portrait(tale: Tale) -> None:
    """What an animal is, with a closing that tells it from the others."""
    x = tale.rng.choice(ANIMALS)
    one = a(x.name)
    tale.title = cap(f"the {cap(x.name)}")
    tale.say(
        f"the {x.name} is a {x.size} animal.",
        f"{one} is a {x.size} animal that lives {x.home}.",
        f"do you know the {x.name}? It is a {x.size} animal.",
    )
    r = tale.rng
    legs = f"it has {count(x.legs, 'leg', 'legs')}" if x.legs else "it has no legs"
    facts = [
        r.choice((f"it eats {x.food}.", f"its food is {x.food}.", f"it likes to eat {x.food}.")),
        r.choice((f"it lives {x.home}.", f"its home is {x.home}.", f"you find it {x.home}.")),
        r.choice((f"it {x.sound}.", f"it {x.sound} when it is {r.choice(FEELINGS)}.")),
        r.choice((f"its young is called {a(x.baby)}.", f"{a(x.baby)} is a young {x.name}.")),
        r.choice((f"it {x.gift}.", f"everybody knows that it {x.gift}.")),
        r.choice((f"{legs}.", f"{legs} and is {r.choice(COLOURS)} or {r.choice(COLOURS)}.")),
    ]
    tale.shuffle(*r.sample(facts, r.randint(3, 6)))
    tale.say(
        f"so if you hear something that {x.sound}, it is {one}.",
        f"if it {x.sound} and {x.gift}, it must be {one}.",
        f"whoever wants to see {one} should look {x.home}.",
        f"so the best present for {one} is some {x.food}.",
    )
    _facts(tale, x)


def meeting(tale: Tale) -> None:
    """Two animals meet and talk of what they eat, say, and where they live."""
    x, y = tale.rng.sample(ANIMALS, 2)
    colour, feeling = tale.rng.choice(COLOURS), tale.rng.choice(FEELINGS)
    one = f"{tale.rng.choice(TEMPERS)} {colour}" if tale.rng.random() < 0.6 else colour
    tale.title = f"The {cap(x.name)} and the {cap(y.name)}"
    tale.say(
        f"{a(one)} {x.name} lived {x.home}.",
        f"there was once {a(one)} {x.name} who lived {x.home}.",
        f"{tale.rng.choice(TIMES)} {a(one)} {x.name} left its home.",
    )
    tale.scene(0.5)
    tale.say(
        f"the {x.name} was {feeling}, so it went for a walk and met {a(y.name)}.",
        f"it was {feeling}. On the way it saw {a(y.name)}.",
        f"there it met {a(y.name)} who was {feeling}.",
    )
    topic = tale.rng.randrange(3)
    if topic == 0:
        tale.say(
            f'"what do you eat?" asked the {x.name}{tale.manner()}.',
            f'"are you hungry?" asked the {x.name}{tale.manner()}.',
        )
        tale.say(
            f'"I eat {y.food}," {_said(tale, y.name)}. "And you?"',
            f'"I would like some {y.food}," {_said(tale, y.name)}. "What do you like?"',
        )
        tale.say(
            f'"I eat {x.food}," {_said(tale, x.name)}.',
            f'"only {x.food}," {_said(tale, x.name)}.',
        )
        tale.say(
            f"so each went home, the {x.name} to eat {x.food} and the {y.name} to eat {y.food}.",
            f"they found {x.food} for the {x.name} and {y.food} for the {y.name} and ate.",
        )
    elif topic == 1:
        tale.say(
            f'"where do you live?" asked the {x.name}{tale.manner()}.',
            f'"come with me," {_said(tale, x.name)}.',
        )
        tale.say(
            f'"I live {y.home}," {_said(tale, y.name)}. "Where is your home?"',
            f'"I must go home," {_said(tale, y.name)}. "I live {y.home}. And you?"',
        )
        tale.say(
            f'"my home is {x.home}," {_said(tale, x.name)}.',
            f'"I live {x.home}," {_said(tale, x.name)}.',
        )
        tale.say(
            f"in the evening the {x.name} slept {x.home} and the {y.name} {y.home}.",
            f"so the {x.name} stayed {x.home}, and the {y.name} went back to sleep {y.home}.",
        )
    else:
        tale.say(
            f'"what can you do?" asked the {x.name}{tale.manner()}.',
            f'"who are you?" asked the {x.name}{tale.manner()}.',
        )
        tale.say(
            f'"I am {a(y.name)}, and {a(y.name)} {y.gift}," was the answer.',
            f'"I am the animal that {y.gift}," {_said(tale, y.name)}.',
        )
        tale.say(
            f'"and I am the one that {x.gift}," {_said(tale, x.name)}.',
            f'"I cannot do that, but {a(x.name)} {x.gift}," {_said(tale, x.name)}.',
        )
        tale.say(
            f"then the {y.name} {_past(y)}, the {x.name} {_past(x)}, and they were friends.",
            f"the {x.name} {_past(x)}, and that was how the {y.name} knew it again.",
        )
    tale.ask(f"Whom did the {x.name} meet?", f"it met {a(y.name)}.")
    tale.ask(f"What colour was the {x.name}?", f"the {x.name} was {colour}.")
    _facts(tale, tale.rng.choice((x, y)))


def _past(animal: Animal) -> str:
    """What the animal did with its voice: "buzzed"."""
    return _verb(animal.sound).removesuffix("e") + "ed"


def _said(tale: Tale, name: str) -> str:
    """Who speaks, and perhaps how."""
    return f"said the {name}{tale.manner()}"


def counting(tale: Tale) -> None:
    """Animals come and go, and the last sentence says how many there are."""
    x = tale.rng.choice(ANIMALS)
    n = tale.number(2, 6)
    tale.title = f"{cap(NUMBERS[n])} {cap(x.many)}"
    tale.say(
        f"{tale.rng.choice(TIMES)} {count(n, x.name, x.many)} sat {x.home}.",
        f"there were {count(n, x.name, x.many)} {x.home}.",
        f"{tale.people(1)[0]} saw {count(n, x.name, x.many)} {x.home}.",
    )
    tale.scene(0.5)
    tale.say(
        f"they wanted to eat {x.food}.",
        f"all of them were {tale.rng.choice(FEELINGS)}.",
        f"one of them {_past(x)}, and soon all of them {_past(x)}.",
        chance=0.6,
    )
    came = tale.number(1, 4)
    more = "one more came" if came == 1 else f"{NUMBERS[came]} more came"
    tale.say(f"then {more}.", f"after a while {more} to look for {x.food}.")
    n += came
    tale.say(
        f"now there were {NUMBERS[n]}.", f"so there were {count(n, x.name, x.many)}.", chance=0.8
    )
    if tale.rng.random() < 0.6:
        left = tale.number(1, n - 1)
        tale.say(
            f"when it got dark, {NUMBERS[left]} went away.",
            f"{NUMBERS[left]} of them were afraid and fled."
            if left > 1
            else "one of them was afraid and fled.",
        )
        n -= left
    tale.say(
        f"in the end {count(n, x.name + ' was', x.many + ' were')} {x.home}.",
        f"at night {count(n, x.name, x.many)} slept {x.home}.",
    )
    tale.ask(f"How many {x.many} were there in the end?", count(n, f"{x.name}.", f"{x.many}."))
    _facts(tale, x)


def diary(tale: Tale) -> None:
    """What the weather was on three days, and what an animal did."""
    x = tale.rng.choice(ANIMALS)
    start = tale.rng.randrange(7)
    days = [DAYS[(start + i) % 7] for i in range(3)]
    skies = tale.rng.sample(WEATHER, 3)
    tale.title = f"Three Days of {a(cap(x.name))}"
    things = tale.rng.sample(
        (
            f"the {x.name} looked for {x.food}",
            f"the {x.name} stayed at home",
            f"the {x.name} {_past(x)} all day",
            f"the {x.name} played with its young",
            "nothing happened",
            f"the {x.name} was {tale.rng.choice(FEELINGS)}",
            f"the {x.name} met {a(tale.rng.choice(TEMPERS))} {x.name}",
            f"somebody gave the {x.name} some {x.food}",
            f"the {x.name} slept until {tale.rng.choice(('noon', 'the evening', 'it was dark'))}",
            f"the {x.name} ate a lot of {x.food}",
        ),
        3,
    )
    for day, sky, thing in zip(days, skies, things, strict=True):
        tale.say(f"on {day} {sky}, and {thing}.", f"on {day} {sky}. {cap(thing)}.")
    tale.say(
        f"so {days[1]} was the day when {things[1]}.",
        f"the {x.name} liked {days[0]} best, when {skies[0]}.",
        f"on {days[2]}, when {skies[2]}, the diary ends.",
    )
    for day, thing in zip(days, things, strict=True):
        tale.ask(f"What happened on {day}?", f"{thing}.")
    _facts(tale, x)


def mother(tale: Tale) -> None:
    """A young animal looks for its mother among two others."""
    x, y = tale.rng.sample(ANIMALS, 2)
    colour = tale.rng.choice(COLOURS)
    tale.title = f"The Little {cap(x.baby)}"
    tale.say(
        f"a little {x.baby} could not find its mother.",
        f"{tale.rng.choice(TIMES)} a little {x.baby} had lost its mother.",
    )
    tale.scene(0.4)
    tale.say(
        f"it asked {a(colour)} {y.name}, but the {y.name} only {_past(y)}.",
        f'"are you my mother?" it asked {a(colour)} {y.name}. But the {y.name} only {_past(y)}.',
    )
    said, told = _said(tale, y.name), _said(tale, x.baby)
    asked, replied = tale.rng.choice(
        (
            ("What can your mother do?", f"my mother {x.gift.replace(' its ', ' her ')}"),
            ("What does your mother eat?", f"my mother eats {x.food}"),
            ("Where do you live?", f"we live {x.home}"),
        )
    )
    tale.say(
        f'"you are no {y.baby}, so your mother is not {a(y.name)}," {said}. "{asked}"',
        f'"I eat {y.food}," {said}. "{asked}"',
        f'"my young are {y.home}," {said}. "{asked}"',
    )
    tale.say(
        f'"{replied}," {told}. "Then she is {a(x.name)}," said the {y.name}.',
        f'"{replied}," {told}. "Then look for {a(x.name)}!"',
    )
    tale.say(
        f"the {x.baby} went on until it heard something that {_past(x)}.",
        f"at last it heard how {a(x.name)} {_past(x)}.",
    )
    tale.say(
        f"it was the {x.name}, and both went home and slept {x.home}.",
        f"there {x.home} stood the {x.name}, and they ate {x.food} together.",
    )
    tale.ask(f"Whom did the {x.baby} ask?", f"it asked {a(y.name)}.")
    tale.ask(f"What colour was the {y.name}?", f"the {y.name} was {colour}.")
    _facts(tale, tale.rng.choice((x, y)))


PLOTS: tuple[Callable[[Tale], None], ...] = (portrait, meeting, counting, diary, mother)


def write(rng: random.Random) -> Text:
    """A text of the domain."""
    tale = Tale(rng)
    rng.choice(PLOTS)(tale)
    return tale.done(DOMAIN)

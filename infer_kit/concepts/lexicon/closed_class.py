"""Words that are no nouns here whatever WordNet says, by what may follow them.

WordNet has "a", "at", "he", "it", "or" and "two" among its nouns (a letter, astatine, helium,
information technology, Oregon, a number).
"""

_WORDS = {
    # a noun phrase begins
    "determiner": """a an the my your his her its our their another any each every no either
        neither these those""",
    "number": """zero one two three four five six seven eight nine ten eleven twelve thirteen
        fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy
        eighty ninety hundred hundreds thousand thousands million millions billion dozen dozens all
        both many few several some much more most less least other others such same own half""",
    # a noun or a gerund follows, no finite verb
    "preposition": """aboard about above across after against along alongside amid among amongst
        around at atop before behind below beneath beside besides between beyond by during for from
        in inside into like near nearby of on onto outside over past per than through throughout
        towards toward under underneath until upon via with within without""",
    "to": "to",
    # a participle or an adjective follows, seldom a noun without a determiner
    "auxiliary": """am is are was were be been being 're has have had having do does did done can
        cannot could will would may might must shall should ought gets get got seems seem looks
        appears very too so quite rather really""",
    "conjunction": "and or & nor",
    "other": """i me you he him she it we us they them myself yourself himself herself itself
        ourselves themselves mine yours hers ours theirs who whom whose which what this that
        someone somebody something anyone anybody anything everyone everybody everything nobody
        nothing none but if as then than because while when where why how whether though
        although since unless once yet plus minus not just only even still also again
        already always never often now here there today tonight else together apart away up down off
        out ahead aside forward backward next ok okay yes oh hi hello etc e.g i.e pm a.m p.m let
        lets ago almost maybe perhaps""",
}

KIND = {word: kind for kind, words in _WORDS.items() for word in words.split()}

# These are no concepts, and are passed over as one preposition.
PREPOSITIONS = frozenset(
    {
        ("in", "front", "of"),
        ("on", "top", "of"),
        ("in", "back", "of"),
        ("a", "lot", "of"),
        ("lots", "of"),
        ("next", "to"),
        ("close", "to"),
        ("close", "up", "of"),
        ("close", "by"),
        ("right", "next", "to"),
        ("kind", "of"),
        ("kinds", "of"),
        ("sort", "of"),
        ("sorts", "of"),
        ("type", "of"),
        ("types", "of"),
        ("at", "least"),
        ("at", "most"),
    }
)

# Singular in form, and followed by the verb of a plural.
PLURAL = frozenset(
    [
        "people",
        "police",
        "cattle",
        "couple",
        "group",
        "team",
        "crowd",
        "family",
        "pair",
        "herd",
        "flock",
        "sheep",
        "deer",
        "fish",
    ]
)
# Nouns that act, beside the persons and animals of WordNet.
ANIMATE = PLURAL | {"person", "persons", "animal", "animals", "groups", "teams", "families"}

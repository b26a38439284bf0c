"""The words and sentences of the embedded world. data/world.py makes text, questions and tasks of them.

In a sentence, {braces} stand for a word that is chosen. After a change the world's tokenizer must be made anew
(`python -m data.tokenizer`), and data folders and checkpoints of the old one no longer fit.
"""

from typing import NamedTuple

# -------------------------------------------------------------------------------------------------------------- people

MEN = "Tom Sam Ben Max Leo Dan Jack Paul Carl Hugo".split()
WOMEN = "Anna Mia Lucy Eva Nora Ruth Kate Rosa Jane Clara".split()
SURNAMES = "Stone Hill Wood Brook Field March Frost Reed Lane Snow Dale Fisher Cole Hart West Page".split()


class Person(NamedTuple):
    name: str
    he: str
    him: str
    his: str


PEOPLE = [Person(n, "he", "him", "his") for n in MEN] + [Person(n, "she", "her", "her") for n in WOMEN]

# What text says of a person: attribute → its values, the templates of the text, and the probes: sentences that the text
# never has, made of words that it has.
ATTRIBUTES = {
    "town": (
        "Arden Brill Corby Dover Elton Farley Gorton Halden Kelby Larne Merton Norwell Penrith Ruston Selby Tarvin".split(),
        ("{who} lives in {value}.", "{who} comes from the town of {value}.", "The home of {who} is in {value}."),
        ("The town of {who} is", "{who} has a home in"),
    ),
    "job": (
        "baker miller teacher doctor farmer tailor painter sailor singer writer lawyer potter builder guard cook judge".split(),
        ("{who} works as a {value}.", "{who} is a {value}.", "The job of {who} is that of a {value}."),
        ("{who} has the job of a", "{who} has a job as a"),
    ),
    "pet": (
        "cat dog horse rabbit goat sheep mouse fox".split(),
        ("{who} keeps a {value}.", "{who} has a {value} at home.", "The pet of {who} is a {value}."),
        ("{who} has a pet that is a", "{who} often keeps a"),
    ),
    "colour": (
        "red blue green white black yellow brown grey".split(),
        ("{who} likes {value} best.", "The colour of {who} is {value}.", "{who} often wears {value}."),
        ("The coat of {who} is", "{who} has a coat that is"),
    ),
}

# -------------------------------------------------------------------------------------------------------------- things

# Category → its things. All begin with a consonant, so that "a" gives nothing away.
CATEGORIES = {
    "fruit": "plum pear fig lemon peach melon cherry grape".split(),
    "tool": "hammer saw drill file pick spade rake wrench".split(),
    "bird": "robin hawk crow duck goose swan wren heron".split(),
    "fish": "carp trout cod bass tuna salmon perch pike".split(),
    "tree": "birch pine fir cedar maple beech willow palm".split(),
    "flower": "rose tulip lily daisy violet poppy lotus peony".split(),
    "toy": "ball kite doll puzzle top robot marble drum".split(),
    "vehicle": "car truck van bus train boat bike sled".split(),
    "garment": "hat coat scarf shirt glove boot sock belt".split(),
    "mammal": "cat dog horse rabbit goat sheep mouse fox".split(),
}
CATEGORY_TEXT = (
    "A {thing} is a {category}.",
    "The {thing} is a kind of {category}.",
    "Every {thing} is a {category}.",
    "One {category} is the {thing}.",
)
# Each probe with the number of different sentences that are made from it
CATEGORY_PROBES = {
    "Every {thing} is a kind of": 1,
    "The {thing} in the {place} is a": 6,
    "{name} has a {thing}, a kind of": 6,
}

# -------------------------------------------------------------------------------------------------------- small events

# A story has a sentence from each of its groups in turn; the end follows from the beginning. {a} and {b} are people,
# {x} and {y} goods, {p} and {q} places. The probes are beginnings that the text never has, and their ends.
GOODS = [thing for category in ("fruit", "tool", "toy", "garment") for thing in CATEGORIES[category]]
PLACES = "barn shed kitchen garden market school cellar tower mill yard church stable".split()
WEATHER = ("It was a cold day.", "It was late.", "The sun was high.", "It rained all day.", "Nobody was there.")
STORIES = (
    (
        ("{a} put the {x} in the {p}.", "{a} left the {x} in the {p}.", "The {x} was in the {p}."),
        ("{b} put the {y} in the {q}.", "{b} left the {y} in the {q}.", "The {y} was in the {q}."),
        (
            "Later {a} looked in the {p} and found the {x}.",
            "Later {a} found the {y} in the {q}.",
            "{a} wanted the {x} and went to the {p}.",
            "{b} wanted the {y} and went to the {q}.",
        ),
    ),
    (
        ("{a} had a {x}.", "{a} came from the {q} with a {x}."),
        ("{b} had a {y}.", "{b} came from the {p} with a {y}."),
        ("They met in the {p} and traded.", "They traded."),
        ("Now {a} has the {y}.", "Now {b} has the {x}.", "{a} went home with the {y}.", "{b} left with the {x}."),
    ),
    (
        ("{a} took a {x} from the {p} and went to the {q}.", "{a} went to the {q} with a {x}."),
        ("There {he} met {b}.", "{b} came to the {q} too.", "{b} was there with a {y}."),
        ("{b} wanted the {x}, so {a} left it in the {q}.", "{a} put the {x} in the {q}.", "{b} asked {a} for the {x}."),
    ),
    (
        ("{a} had a {x} and a {y}.", "{a} had a {x}."),
        ("{b} wanted the {x}.", "{b} asked for the {x}."),
        ("{a} gave the {x} to {b}.", "Now {b} has the {x}.", "So {a} gave the {x} to {b} in the {p}."),
    ),
)
STORY_PROBES = (  # each asks for one of two things that it tells of, the first and the second equally often
    ("The {x} was in the {p} and the {y} was in the {q}. {a} wanted the {x} and looked in the", "{p}"),
    ("The {x} was in the {p} and the {y} was in the {q}. {a} wanted the {y} and looked in the", "{q}"),
    ("{a} took the {x} to the {p} and the {y} to the {q}. {b} asked for the {x}. It was in the", "{p}"),
    ("{a} took the {x} to the {p} and the {y} to the {q}. {b} asked for the {y}. It was in the", "{q}"),
    ("{a} came with a {x} and {b} came with a {y}. They traded. {b} went to the {p} with the", "{x}"),
    ("{a} came with a {x} and {b} came with a {y}. They traded. {a} went to the {p} with the", "{y}"),
    ("{a} went to the {p} and {b} went to the {q}. {a} had a {x} and left it in the", "{p}"),
    ("{a} went to the {p} and {b} went to the {q}. {b} had a {x} and left it in the", "{q}"),
)

# ------------------------------------------------------------------------------------ facts with numbers, and problems

COUNTED = (
    "pears plums figs lemons peaches melons kites balls dolls marbles hats coats boots socks roses tulips "
    "coins books cards stamps shells beads pens nuts"
).split()
CONTAINERS = "crate box bag basket sack case tray barrel chest jar bucket cart".split()
# A problem may tell of "a sack of boots" where another tells of "24 boots": how many these are is only in the text.
FACT_TEXT = (
    "A {container} of {things} holds {n}.",
    "Every {container} of {things} holds {n}.",
    "A {container} of {things} has {n}.",
    "One {container} of {things} holds {n}.",
)

# A problem: an opening, an event for each step (sign, number; None: any number), a question
OPENINGS = ("{name} has {start} {things}.", "{name} starts with {start} {things}.", "{name} owns {start} {things}.")
EVENTS = {
    ("+", None): (
        "{He} buys {n} more.",
        "{He} finds {n} more.",
        "A friend gives {him} {n}.",
        "Then {he} gets {n} more.",
    ),
    ("-", None): ("{He} loses {n}.", "{He} sells {n}.", "{He} gives {n} to a friend.", "Then {he} uses {n}."),
    ("*", 2): ("{He} doubles {his} {things}.", "Then {his} {things} double."),
    ("*", 3): ("{He} triples {his} {things}.", "Then {his} {things} triple."),
    ("/", 2): ("{He} loses half.", "{He} sells half.", "{He} gives half to a friend.", "Then {he} uses half."),
}
QUESTIONS = ("How many {things} are there?", "How many {things} are left?", "How many {things} are there now?")

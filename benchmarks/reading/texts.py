"""What the pictures say: sentences, names and figures that the generator brings, so that any machine draws the same.

ASCII only: what a reader writes is compared letter by letter.
"""

from __future__ import annotations

import numpy as np

SENTENCES = (
    "The ferry leaves the northern pier every forty minutes and takes bicycles on the lower deck.",
    "Readings below the second mark mean that the valve has to be cleaned before the next shift.",
    "Nobody expected the library to reopen in March, least of all the people who had closed it.",
    "A narrow path follows the river as far as the mill, then climbs through beech woods to the road.",
    "Please return the signed copy within fourteen days and keep the other one for your own records.",
    "Most of the harvest was sold before noon, and what remained went to the kitchen of the school.",
    "The committee found no fault with the figures but asked for a shorter summary next year.",
    "Water boils at a lower temperature on the plateau, so beans take nearly twice as long to cook.",
    "Her first book described the coast, her second the islands, and her third the sea between them.",
    "When the bell rings twice, leave by the east stairs and wait in the yard behind the workshop.",
    "Old maps show a bridge here, although no stone of it has been found on either bank.",
    "The discount applies to orders of more than twelve boxes and cannot be combined with vouchers.",
    "Storage is free for the first week; after that each pallet costs three crowns a day.",
    "He repaired clocks for forty years and never once was on time for his own lunch.",
    "Sample B was heated slowly, stirred by hand and left to cool under glass overnight.",
    "Rain is likely in the west by evening, with gusts near the hills and clear skies elsewhere.",
    "The museum keeps its coins in shallow drawers lined with felt, sorted by reign and by metal.",
    "If the lamp flickers, switch the unit off, wait a minute and hold the left button down.",
    "Travellers with heavy luggage are asked to use the lift at the far end of platform six.",
    "Two thirds of the answers came by post, which surprised the authors of the survey.",
    "Every apprentice spends a month in the foundry, a month in the office and a month outdoors.",
    "The recipe calls for rye flour, honey, a little pepper and more patience than most cooks have.",
    "Tickets bought online can be changed until midnight on the day before the performance.",
    "An owl nests in the tower, and the bells have been silent since she moved in.",
    "The new sensor weighs nine grams and draws less current than the wire that feeds it.",
    "Voting closes at six; results are pinned to the board beside the canteen door.",
    "Children under seven travel free when they share a seat with an adult.",
    "The second edition corrects the table on page ninety and adds an index of places.",
    "Do not stack more than five crates, and never stand on the upper one.",
    "What the engineers called a minor leak had emptied the reservoir by Thursday.",
    "The orchard lost its oldest tree in the storm, yet flowered better than ever in May.",
    "A copy of this notice hangs in the entrance hall and at the gate to the depot.",
)
FIRST_NAMES = (
    "Agnes",
    "Boris",
    "Clara",
    "Dmitri",
    "Edith",
    "Farid",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Liang",
    "Marta",
    "Nils",
    "Olga",
    "Pavel",
)
LAST_NAMES = (
    "Abbott",
    "Bergman",
    "Castillo",
    "Dvorak",
    "Ekberg",
    "Fontaine",
    "Gupta",
    "Haraldsen",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Lindqvist",
)
STREETS = ("Harbour Road", "Mill Lane", "Station Street", "Orchard Close", "Chapel Hill", "Quarry View", "Elm Avenue")
TOWNS = ("Northfield", "Redmouth", "Ashby", "Kingsferry", "Oldcastle", "Westerham", "Lower Haddon")
TITLES = (
    "Quarterly Report on Storage",
    "Notes on the Coastal Survey",
    "Maintenance of Steam Valves",
    "Plan for the Summer Season",
    "Minutes of the Annual Meeting",
    "Guide to the Permanent Collection",
    "Findings of the Water Study",
    "Terms of the Delivery Contract",
)
TOPICS = (
    "Harvest",
    "Freight",
    "Visitors",
    "Repairs",
    "Energy",
    "Rainfall",
    "Exports",
    "Training",
    "Storage",
    "Tickets",
)
PLACES = ("North", "South", "Harbour", "Valley", "Island", "Border", "Plateau", "Capital")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
SIGNS = (
    "PLEASE RING TWICE",
    "Fresh bread from six",
    "Platform 6 to Redmouth",
    "NO ENTRY 07:30 - 18:45",
    "Bicycles on lower deck",
    "MUSEUM OPEN DAILY",
    "Lift out of order",
    "Parking for guests only",
    "Keep this gate closed",
    "Tickets 4.80 at desk 12",
    "Exit by the east stairs",
    "CAUTION: WET FLOOR",
)
VERBS = ("load", "parse", "merge", "filter", "update", "count", "resolve", "collect", "write", "split")
NOUNS = ("records", "tokens", "layout", "weights", "prices", "orders", "events", "header", "margins", "columns")


def pick(rng: np.random.Generator, values: tuple | list, count: int | None = None):  # type: ignore[no-untyped-def]
    """One of the values, or `count` different ones."""
    if count is None:
        return values[rng.integers(len(values))]
    return [values[i] for i in rng.permutation(len(values))[:count]]


def prose(rng: np.random.Generator, sentences: int) -> str:
    """A paragraph."""
    return " ".join(pick(rng, SENTENCES, sentences))


def person(rng: np.random.Generator) -> str:
    return f"{pick(rng, FIRST_NAMES)} {pick(rng, LAST_NAMES)}"


def amount(rng: np.random.Generator) -> str:
    return f"{rng.integers(1, 9000):,}.{rng.integers(100):02d}"


def date(rng: np.random.Generator) -> str:
    return f"{rng.integers(1, 29)} {pick(rng, MONTHS)} {rng.integers(1987, 2027)}"


def code(rng: np.random.Generator, functions: int) -> list[str]:
    """Lines of Python that could be meant."""
    lines = ["from __future__ import annotations", "", "import itertools", "from pathlib import Path", ""]
    for _ in range(functions):
        verb, noun, other = pick(rng, VERBS), *pick(rng, NOUNS, 2)
        bound, step = int(rng.integers(2, 4096)), int(rng.integers(2, 64))
        lines += [
            "",
            f"def {verb}_{noun}({other}: list[int], limit: int = {bound}) -> dict[str, int]:",
            f'    """{str(verb).capitalize()} the {noun} that {other} name, up to limit of them."""',
            f"    found = {{name: {other}[name] for name in range(0, limit, {step})}}",
            f"    for key, value in itertools.islice(found.items(), {step}):",
            f"        if value % {step} != {int(rng.integers(step))} and key not in {other}:",
            f'            raise KeyError(f"{{key}}: expected one of {{sorted({other})}}")',
            f"    return {{str(Path(key)): value + {bound} for key, value in found.items()}}",
            "",
        ]
    return lines

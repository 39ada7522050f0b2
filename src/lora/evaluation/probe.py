"""The texts of the probe of general ability: plain text that is none of the training data's."""

from __future__ import annotations

from lora.data.columns import TEXT, Table
from lora.data.sources import load_rows
from lora.errors import DataError

# Written for this purpose: narration, explanation, a letter, a dialogue, a recipe, news, a definition, code.
TEXTS = (
    "The ferry left the harbour an hour late. Mara stood at the rail with her collar turned up and watched the lights "
    "of the town grow small. She had meant to feel something, relief or regret, but there was only the cold wind and "
    "the smell of diesel. Behind her a child asked for the third time when they would arrive.",
    "Water boils when the pressure of its vapour equals the pressure of the air above it. On a mountain the air is "
    "thinner, so water boils at a lower temperature, and potatoes take longer to cook. A closed pot works the other "
    "way round: the steam cannot escape, the pressure rises, and the water becomes hotter than a hundred degrees.",
    "Dear Mr Okafor, thank you for your letter of the third of May. We are sorry that the second delivery arrived "
    "damaged. A replacement was sent this morning and should reach you by Friday. You need not return the broken "
    "parts. If anything else is missing, please call us between nine and five. Yours sincerely, Helen Brandt.",
    '"Did you lock the door?" "I thought you had." "So nobody did." They looked at each other for a moment, and then '
    "both of them started to laugh. It was raining, the bus was already in sight, and going back was out of the "
    "question.",
    "Chop one onion and two cloves of garlic and fry them gently in olive oil until they are soft. Add a tin of "
    "tomatoes, a pinch of sugar and some salt, and let the sauce simmer for twenty minutes. Meanwhile cook the pasta "
    "in plenty of salted water. Mix both, and serve with grated cheese and a few leaves of basil.",
    "The city council voted on Tuesday to close the old bridge to cars from next spring. Cyclists and pedestrians "
    "will still be able to cross. Shop owners on the northern side fear that they will lose customers; residents, who "
    "had asked for the change for years, welcomed the decision. The works are expected to cost four million.",
    "A hypothesis is a statement that can be tested. It is useful because it can be wrong: if an experiment gives "
    "another result than it predicts, it must be changed or given up. A theory is a set of such statements that have "
    "stood many tests and explain one another.",
    "def average(values):\n    total = 0\n    for value in values:\n        total = total + value\n"
    "    if len(values) == 0:\n        return 0\n    return total / len(values)\n\nprint(average([1, 2, 3]))\n",
)  # fmt: skip


def probe_texts(source: str) -> list[str]:
    """The texts of a file or hub id that the user names. Raises DataError: it has no column of text."""
    rows = load_rows(source)
    column = Table(rows).get(*TEXT)
    texts = [row[column] for row in rows if isinstance(row.get(column), str) and row[column].strip()] if column else []
    if not texts:
        raise DataError(f"{source}: no text for the probe; a txt file, or a column of text, is needed")
    return texts

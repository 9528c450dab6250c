"""GQA accuracy: the answer word for word, both sides normalised by one function.

Source: Hudson and Manning 2019, arXiv 1902.09506.

Differs from the official script: it compares the strings as they are. A normaliser on one side only
makes answers wrong that are right ("T-shirt." against "t-shirt"); here it is the same on both. A
prediction of which nothing is left is wrong, also where nothing is left of an answer.
"""

import string
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_gqa(text: str) -> str:
    """Lower case, no punctuation, single spaces.

    >>> normalize_gqa(" T-shirt. ")
    'tshirt'
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def gqa_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, else 0.

    >>> gqa_match("Chair.", ["table", "chair"]), gqa_match("", ["?"])
    (1.0, 0.0)
    """
    given = normalize_gqa(prediction)
    return float(given != "" and any(given == normalize_gqa(answer) for answer in answers))

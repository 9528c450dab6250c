"""One request explained: a page that shows what each stream did to each token of the answer."""

from infer_kit.explanation.explained import Explanation, explain

__all__ = ["Explanation", "explain"]

"""LongBench's metrics, which give the same numbers as its own `metrics.py` and `eval.py`.

Oddities of the original that change a score are kept, with a comment. The best of a document's answers counts.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

INSTALL = "pip install 'positional-heads[eval]'"
LIBRARIES = {"rouge": ("rouge",), "rouge_zh": ("rouge", "jieba"), "words_zh": ("jieba",)}
"""Libraries of the extra `eval` that a metric needs."""
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
"""Datasets with examples in the prompt: after its answer, a model continues with another example."""
CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「"  # noqa: RUF001
    "」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)


def judged(dataset: str, metric: str, generated: str, answers: Sequence[str], classes: Sequence[str] | None) -> float:
    """The score of a generated answer, from 0 to 1.

    Args:
        dataset: Name of the dataset, without `_e`.
        metric: Name of its metric.
        generated: The generated answer.
        answers: Correct answers.
        classes: All classes, if the metric is `classes`.
    """
    if dataset in FIRST_LINE:
        generated = generated.lstrip("\n").split("\n")[0]
    if metric == "classes":
        return max(_classes(generated, answer, classes or ()) for answer in answers)
    return max(METRICS[metric](generated, answer) for answer in answers)


def refuse_missing_library(metrics: set[str]) -> None:
    """Refuse metrics whose library is not installed.

    Raises:
        ImportError: If one is missing.
    """
    import importlib.util

    for name in sorted({name for metric in metrics for name in LIBRARIES.get(metric, ())}):
        if importlib.util.find_spec(name) is None:
            msg = f"LongBench's metrics {', '.join(sorted(metrics))} need {name}, which is not installed: {INSTALL}"
            raise ImportError(msg)


def unfit_answer(metric: str, answers: Sequence[str], classes: Any) -> str | None:
    """Why a metric cannot score a document, or None if it can."""
    if metric == "classes" and not (isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes)):
        return f"all_classes must list the classes that its metric looks for, it is {classes!r}"
    pattern = _PARAGRAPH.get(metric)
    for answer in answers:
        if pattern and not re.search(pattern, answer):
            return f"its metric looks for an answer like {pattern.replace(_NUMBER, '7')!r}, it is {answer!r}"
    return None


_NUMBER = r"(\d+)"
_PARAGRAPH = {"paragraph": rf"Paragraph {_NUMBER}", "paragraph_zh": rf"段落{_NUMBER}"}


def _words(generated: str, answer: str) -> float:
    return _f1(_plain_words(generated), _plain_words(answer))


def _words_zh(generated: str, answer: str) -> float:
    def words(text: str) -> list[str]:
        left_out = set(string.punctuation + CHINESE)
        plain = ("".join(c for c in word.lower() if c not in left_out) for word in _cut(text))
        return [word for word in ("".join(one.split()) for one in plain) if word]

    return _f1(words(generated), words(answer))


def _cut(text: str) -> list[str]:
    """Words of a Chinese text."""
    import jieba  # type: ignore[import-untyped]

    return list(jieba.cut(text, cut_all=False))


def _plain_words(text: str) -> list[str]:
    """Words without punctuation and articles."""
    letters = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", letters).split()


def _f1(generated: list[str], answer: list[str]) -> float:
    same = sum((Counter(generated) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(generated), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def _rouge(generated: str, answer: str) -> float:
    from rouge import Rouge  # type: ignore[import-untyped]

    try:
        return float(Rouge().get_scores([generated], [answer], avg=True)["rouge-l"]["f"])
    except (ValueError, RecursionError):  # the library fails on empty and on very long answers; 0, as in the original
        return 0.0


def _rouge_zh(generated: str, answer: str) -> float:
    return _rouge(*(" ".join(_cut(text)) for text in (generated, answer)))


def _classes(generated: str, answer: str, classes: Sequence[str]) -> float:
    matches = [name for name in classes if name in generated]
    # as in the original, which removes while it iterates, so the class after a removed one is skipped
    for name in matches:
        if name in answer and name != answer:
            matches.remove(name)
    return 1 / len(matches) if answer in matches else 0.0


def _share_of_numbers(generated: str, right: str) -> float:
    numbers = re.findall(r"\d+", generated)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def _paragraph(generated: str, answer: str) -> float:
    return _share_of_numbers(generated, re.findall(_PARAGRAPH["paragraph"], answer)[0])


def _paragraph_zh(generated: str, answer: str) -> float:
    return _share_of_numbers(generated, re.findall(_PARAGRAPH["paragraph_zh"], answer)[0])


def _code(generated: str, answer: str) -> float:
    """Similarity of the first line that is not a comment; blank lines in the middle count as lines."""
    lines = generated.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    # fuzzywuzzy's `fuzz.ratio`; faster libraries give slightly different numbers
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100 if line and answer else 0.0


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "words": _words,
    "words_zh": _words_zh,
    "rouge": _rouge,
    "rouge_zh": _rouge_zh,
    "count": _share_of_numbers,
    "paragraph": _paragraph,
    "paragraph_zh": _paragraph_zh,
    "code": _code,
}

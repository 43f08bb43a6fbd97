"""Subsets put together by `and`, `or` and `minus`: an expression read, and its verdict on each sample.

Membership is that of sets. A sample that is in the result stands there as often as in the operand that has
it most often: for `minus`, in the one to its left. So no filter undoes oversampling, and a takedown list
takes every copy away.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.funnel import FAILED, KEPT, Verdicts

Counts = npt.NDArray[np.intp]
OPERATORS = ("and", "or", "minus")
EXAMPLE = 'such as "strict and not_nsfw minus takedown.npy"'


class Operation(NamedTuple):
    """Two expressions and what joins them; an expression that is a name or a path is a string."""

    operator: str
    left: "Expression"
    right: "Expression"


Expression = str | Operation


def parse(text: str) -> Expression:
    """An expression of names of subsets and paths. Operators go from left to right; `or` beside another one
    wants parentheses.

    Raises:
        RecipeError: it is no expression.
    """
    try:
        reader = shlex.shlex(text, posix=True, punctuation_chars="()")
        reader.commenters, reader.whitespace_split = "", True
        words = [part for word in reader for part in (word if set(word) <= {"(", ")"} else [word])]
    except ValueError as error:
        raise RecipeError(f"expression: {text}: {error}; quote a path as in 'my lists/a.npy'") from None
    if not words:
        raise RecipeError(f"expression: is empty; names of subsets are wanted, {EXAMPLE}")
    if words.count("(") != words.count(")"):
        raise RecipeError(
            f"expression: {text}: {words.count('(')} parentheses are opened, {words.count(')')} closed"
        )
    found, rest = _level(words, 0, text)
    if rest < len(words):
        raise RecipeError(f"expression: {text}: a parenthesis is closed that is not open; {EXAMPLE}")
    return found


def _level(words: list[str], at: int, text: str) -> tuple[Expression, int]:
    """The expression from a word to the end, or to the parenthesis that closes it; and where it ends."""
    found, at = _operand(words, at, text)
    seen = list[str]()
    while at < len(words) and words[at] != ")":
        operator = words[at]
        if operator not in OPERATORS:
            raise RecipeError(
                f'expression: {text}: "{operator}" stands where and, or, or minus is wanted, {EXAMPLE}'
            )
        seen.append(operator)
        if "or" in seen and set(seen) != {"or"}:
            raise RecipeError(
                f"expression: {text}: `or` beside `{next(one for one in seen if one != 'or')}`; say by "
                "parentheses which goes first, such as (a or b) minus c"
            )
        right, at = _operand(words, at + 1, text)
        found = Operation(operator, found, right)
    return found, at


def _operand(words: list[str], at: int, text: str) -> tuple[Expression, int]:
    if at < len(words) and words[at] == "(":
        found, end = _level(words, at + 1, text)
        if end == len(words):
            raise RecipeError(f"expression: {text}: a parenthesis is not closed")
        return found, end + 1
    if at == len(words) or words[at] in (*OPERATORS, ")"):
        where = f'before "{words[at]}"' if at < len(words) else "at the end"
        raise RecipeError(f"expression: {text}: a subset is missing {where}, {EXAMPLE}")
    return words[at], at + 1


def operands(expression: Expression) -> Iterator[str]:
    """The names and paths of an expression, in order, each as often as it stands there."""
    if isinstance(expression, str):
        yield expression
    else:
        yield from operands(expression.left)
        yield from operands(expression.right)


def spell(expression: Expression) -> str:
    """The expression in one spelling; of a path the file's name, as where it lies is nobody's business."""
    if isinstance(expression, str):
        return shlex.quote(Path(expression).name)
    operator, left, right = expression
    first = spell(left)
    # to the left the same order needs none, but where `or` meets another operator
    if isinstance(left, Operation) and "or" in (operator, left.operator) and operator != left.operator:
        first = f"({first})"
    return f"{first} {operator} {f'({spell(right)})' if isinstance(right, Operation) else spell(right)}"


def combine(
    expression: Expression, counts: Mapping[str, Counts], written: npt.NDArray[np.bool_]
) -> tuple[Verdicts, dict[int, str], Counts]:
    """What an expression says of each sample.

    Args:
        counts: for each operand how often it has each row of the pool, shape (rows,).
        written: which rows have an image; the others have failed.

    Returns:
        The verdict on each row: -1 kept, -2 failed, else which operand left it out. What each verdict of the
        last kind is in words, in the order in which they are looked at. How often each row is in the result.
    """
    reasons = list[str]()

    def look(one: Expression) -> tuple[Counts, Verdicts]:
        """How often each row is in it, and where it is not the place of the reason."""
        if isinstance(one, str):
            reasons.append(f"not in {spell(one)}")
            return counts[one], np.full(len(written), len(reasons) - 1, np.int32)
        number, why = look(one.left)
        if one.operator == "and":
            other, why_other = look(one.right)
            both = np.where((number > 0) & (other > 0), np.maximum(number, other), 0)
            return both, np.where(number > 0, why_other, why).astype(np.int32)
        known = len(reasons)
        other, _ = look(one.right)
        if one.operator == "minus":
            reasons[known:] = [f"in {spell(one.right)}"]
            return np.where(other > 0, 0, number), np.where(number > 0, known, why).astype(np.int32)
        del reasons[known:]
        reasons.append(f"not in {spell(one)}")
        return np.maximum(number, other), np.full(len(written), known, np.int32)

    found, why = look(expression)
    copies = np.where(written, found, 0)
    verdict = np.where(copies > 0, KEPT, np.where(written, why, FAILED)).astype(np.int32)
    given = set(np.unique(verdict).tolist())
    return verdict, {code: reason for code, reason in enumerate(reasons) if code in given}, copies

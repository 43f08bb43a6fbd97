"""Classes: read from a table or from a list that ships, completed from WordNet, told apart, and added to.

Plain functions over lists of `Category`; knows nothing of recipes, templates or models.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from synthgen import wordnet
from synthgen.data import Category, Word
from synthgen.diversity import farthest_points
from synthgen.errors import RecipeError
from synthgen.shards import make_seed

Embed = Callable[[list[Category]], npt.NDArray[np.float32]]
"""Classes to their embeddings, float of shape (classes, features), of any length."""


def complete(categories: Sequence[Category]) -> list[Category]:
    """The classes with what WordNet says of their synset, where nothing is given: name, prompt, synonyms,
    definition, hypernym.

    A synset given by its name, "dog.n.01", becomes its id. Without a synset a class stays as it is: the word
    alone does not say what it means.

    Raises:
        RecipeError: a class has a synset that WordNet 3.0 has not.
    """
    return [_complete(category) if category.synset else category for category in categories]


def tell_apart(categories: Sequence[Category]) -> list[Category]:
    """The classes with one name for each meaning: of classes of one name and several synsets the first keeps
    it.

    A later one becomes "crane (lifting device)", with the word for what it is a kind of, or, where that does
    not tell them apart either, with the synset's name. Its prompt, unless it has one of its own, becomes
    "crane, a kind of lifting device". The first keeps its prompt too, so that a class added later changes no
    prompt that is planned. Classes of the same name and synset are the same class; nothing is done where a
    synset is missing. Synsets are ids, as `complete` leaves them.
    """
    meanings = {category.name: category.synset for category in reversed(categories)}
    told: dict[tuple[str, str], Category] = {}
    result = []
    for category in categories:
        key = category.name, category.synset
        if not category.synset or meanings[category.name] in ("", category.synset):
            result.append(category)
            continue
        if key not in told:
            told[key] = _renamed(category, meanings)
            meanings[told[key].name] = category.synset
        renamed = told[key]
        prompt = renamed.prompt if category.prompt == category.name else category.prompt
        result.append(category._replace(name=renamed.name, prompt=prompt))
    return result


def report(categories: Sequence[Category]) -> list[str]:
    """Lines on classes to look at: names told apart by what they are, and synsets that have no word in common
    with their class.
    """
    by_name = {category.name: category for category in categories}
    lines = []
    for category in filter(lambda one: one.synset, categories):
        base = by_name.get(re.sub(r" \([^()]*\)$", "", category.name), category)
        if base.synset and base.synset != category.synset:
            kinds = [_complete(one).hypernym for one in (category, base)]
            lines.append(
                f'class {category.id} "{category.name}", a kind of {kinds[0]}, is not '
                f'class {base.id} "{base.name}", a kind of {kinds[1]}'
            )
        synset = wordnet.find(category.synset)
        known = _words(" ".join([*synset.lemmas, synset.definition, _complete(category).hypernym]))
        if not _words(f"{category.name} {category.prompt}") & known:
            lines.append(
                f'class {category.id} "{category.name}" has the synset {synset.name}, '
                f'"{_brief(synset.definition)}"; is that meant?'
            )
    return lines


def ambiguous(categories: Sequence[Category]) -> dict[str, str]:
    """Names without a synset that may mean several things, with two of these."""
    found = {}
    for category in categories:
        meanings = [] if category.synset else wordnet.senses(category.name)
        if len(meanings) > 1:
            some = " or ".join(f'{synset.name} "{_brief(synset.definition)}"' for synset in meanings[:2])
            more = f", or {len(meanings) - 2} more" if len(meanings) > 2 else ""
            found[category.name] = some + more
    return found


def _words(text: str) -> set[str]:
    """The beginnings of a text's words: "sunglasses" and "sunglass" share one."""
    return {word[:4] for word in re.findall(r"[a-z]{2,}", text.lower().replace("-", ""))}


def matches(category: Category, what: str) -> bool:
    """Whether `what` is the class's name, or what it is a kind of: a word, or a synset of WordNet. "=dog" is
    the class of that name and no other.

    False for a word that nobody knows: whoever reads a recipe checks that some class matches.
    """
    if what.startswith("="):
        return what[1:] == category.name
    if what and what in (category.name, category.hypernym):
        return True
    return bool(category.synset) and wordnet.is_a(category.synset, what)


def words_of_classes(entries: Sequence[Word], categories: Sequence[Category]) -> dict[str, list[str]]:
    """The words of a list that are for each class, by its name, in their order."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(entries):
        places.setdefault(word.only, []).append(place)
    general = places.pop("", [])
    alone = {what[1:]: places.pop(what) for what in list(places) if what.startswith("=")}
    return {
        one.name: [
            entries[place].text
            for place in sorted(
                {*general, *alone.get(one.name, ())}.union(
                    *(own for what, own in places.items() if matches(one, what))
                )
            )
        ]
        for one in categories
    }


def extra(
    known: Sequence[Category],
    candidates: Sequence[Category],
    *,
    below: float | None = None,
    choose: Literal["all", "first", "farthest"] = "all",
    count: int | None = None,
    embed: Embed | None = None,
) -> list[Category]:
    """Classes to add to the known ones: candidates that are unlike all of them, with ids that follow theirs.

    A candidate that is a known class (of the same synset, or, where one lacks it, of the same name) is left
    out. Names are told apart from those of the known and of one another.

    Args:
        known: what is there.
        candidates: what may be added, in their order.
        below: leave out candidates whose greatest path similarity in WordNet to any known class is not below
            this; 0.4 leaves out the same, parents, children (1/2), and keeps siblings (1/3). None: keep all.
        choose: "all"; the "first" `count` in order, as the paper did; or the `count` that are "farthest" from
            the known and from one another, of which a smaller count gives the beginning of a greater one's.
        count: how many, for "first" and "farthest".
        embed: with "farthest", measure by the cosine of these embeddings. None: by path in
            WordNet.

    Raises:
        RecipeError: `count` does not fit `choose` or what is left; nothing is left; a class that has to be
            compared in WordNet has no synset. Known classes that are `not_in_wordnet` need none.

    Source: DiverGen (Fan et al., 2024, arXiv 2405.10185), category diversity: below = 0.4 keeps 566 of
    ImageNet-1k's classes against LVIS. Its 250 are the first of these in class order, which are all animals.
    """
    if below is not None and not 0 < below <= 1:
        raise RecipeError(
            f"below = {below:g}; a path similarity above 0 and up to 1 is wanted, such as 0.4 "
            "(they are 1, 1/2, 1/3, ...)"
        )
    if (count is None) != (choose == "all"):
        have = "all takes no count" if choose == "all" else "the count is missing"
        raise RecipeError(f'choose = "{choose}": {have}; "first" and "farthest" need one, "all" none')
    known, candidates = complete(known), complete(candidates)
    if below is not None or (choose == "farthest" and embed is None):
        _require_synsets(known, not_in_wordnet(known), "the known class")
        _require_synsets(candidates, [], "the candidate")
    left = _unlike(known, candidates, below)
    if not left or (count is not None and not 0 < count <= len(left)):
        limit, raise_it = ("", "") if below is None else (f" below = {below:g}", "raise it, or ")
        raise RecipeError(
            f"{'count' if left else 'classes'}: {len(left)} of {len(candidates)} candidates are left{limit}"
            + (f", {count} are wanted" if left else f"; {raise_it}name another list")
        )
    if choose == "farthest" and count is not None:
        places = _farthest(known, left, count, embed)
    else:
        places = list(range(len(left)))[:count]
    first = max((category.id for category in known), default=-1) + 1
    chosen = [left[place]._replace(id=first + k) for k, place in enumerate(places)]
    return tell_apart([*known, *chosen])[len(known) :]


def not_in_wordnet(categories: Sequence[Category]) -> list[Category]:
    """Classes without a synset of whose name WordNet 3.0 knows nothing, such as LVIS's "stop sign".

    No noun of WordNet is the same, so leaving them out of a comparison loses nothing but their neighbours.
    """
    return [
        category
        for category in categories
        if not category.synset
        and not any(wordnet.senses(word) for word in (category.name, category.name.removesuffix("s")))
    ]


def _complete(category: Category) -> Category:
    try:
        synset = wordnet.find(category.synset)
    except RecipeError as error:
        raise RecipeError(f'class {category.id} "{category.name}": {error}') from None
    name = category.name or synset.lemmas[0]
    above = [wordnet.find(hypernym).lemmas[0] for hypernym in synset.hypernyms[:1]]
    return category._replace(
        name=name,
        prompt=category.prompt or name,
        synset=synset.id,
        synonyms=category.synonyms or tuple(word for word in synset.lemmas if word != name),
        definition=category.definition or synset.definition,
        hypernym=category.hypernym or "".join(above),
    )


def _renamed(category: Category, meanings: Mapping[str, str]) -> Category:
    """A class under a name of its own, and its prompt."""
    category = _complete(category)
    name = f"{category.name} ({category.hypernym})"
    if category.hypernym.lower() not in ("", category.name.lower()) and name not in meanings:
        return category._replace(name=name, prompt=f"{category.name}, a kind of {category.hypernym}")
    return category._replace(
        name=f"{category.name} ({wordnet.find(category.synset).name})",
        prompt=f"{category.name}, {_brief(category.definition)}",
    )


def _brief(definition: str) -> str:
    """A definition up to its first semicolon, and without what stands in brackets before it."""
    return re.sub(r"^\([^()]*\) ?| \([^()]*\)", "", definition).split(";")[0].strip()


def _require_synsets(categories: Sequence[Category], exempt: Sequence[Category], who: str) -> None:
    """Raises RecipeError where a class cannot be compared; nobody is exempt where none has a synset."""
    lacking = [category for category in categories if not category.synset]
    if len(lacking) < len(categories):
        lacking = [category for category in lacking if category not in exempt]
    if lacking:
        more = f" ({len(lacking)} classes have none)" if len(lacking) > 1 else ""
        raise RecipeError(
            f'{who} {lacking[0].id} "{lacking[0].name}" has no synset to be compared by{more}; give a .csv '
            "with a column synset (WordNet 3.0), such as n02084071 or dog.n.01"
        )


def _unlike(known: Sequence[Category], candidates: Sequence[Category], below: float | None) -> list[Category]:
    """The candidates that are no known class and, where a limit is given, less similar than that."""
    synsets = {category.synset for category in known if category.synset}
    names = {category.name: category.synset for category in known}
    left: list[Category] = []
    for category in candidates:
        is_known = category.synset in synsets or (
            category.name in names and not (category.synset and names[category.name])
        )
        if not is_known:
            left.append(category)
            if category.synset:
                synsets.add(category.synset)
    if below is None:
        return left
    similarity = wordnet.greatest_similarity(
        [category.synset for category in left], [category.synset for category in known if category.synset]
    )
    return [category for category, value in zip(left, similarity, strict=True) if value < below]


def _farthest(
    known: Sequence[Category], candidates: Sequence[Category], count: int, embed: Embed | None
) -> list[int]:
    if embed is not None:
        return _farthest_texts(known, candidates, count, embed)
    return wordnet.farthest(
        [category.synset for category in candidates],
        [category.synset for category in known if category.synset],
        count,
    )


def _farthest_texts(
    known: Sequence[Category], candidates: Sequence[Category], count: int, embed: Embed
) -> list[int]:
    """As `wordnet.farthest`, by the cosine of embeddings; of equally far candidates a hash of the name
    decides.
    """
    order = sorted(range(len(candidates)), key=lambda place: make_seed(candidates[place].name))
    vectors = embed([*known, *(candidates[place] for place in order)])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    old, new = vectors[: len(known)], vectors[len(known) :]
    return [order[place] for place in farthest_points(new, count, old)]

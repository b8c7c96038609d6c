"""From a written answer to what it says: one reader of letters and words for every task.

An answer is read in four steps. What stands around it is taken off (Markdown, LaTeX, tags, a model's thinking). The
texts of the question's own options are found, whole and the longest first, so that "vitamin C" is no letter and "black
cat" no "cat". Mentions that the answer itself rejects ("not A", "C is wrong") do not count. What is left decides: a
statement ("the answer is B", a box) before what the answer begins with, and that before what it mentions anywhere. An
answer that names several options chooses none. Every letter is read by the same rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Stands where an option's text was: no letter, digit or space.
_MASK = "█"
# An answer stands at the beginning or at the end of what a model writes; what loops on between is not read.
_READ_CHARS = 6_000

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(answer|final_answer|choice)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|rm|bf)\s*\{([^{}]*)\}")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_FORMULA = re.compile(r"\$([^$\d][^$\n]*)\$")
_MARKS = re.compile(r"[*`\"“”«»\\]|(?<!\w)['_‘’]+|['_‘’]+(?!\w)|^[ \t]*(?:#+|>+|[-•])[ \t]+", re.MULTILINE)

# A label may stand before these words; before any other, "A" is the article, and so every letter is no label there.
_BEHIND_LABEL = (
    "is|was|are|were|be|because|since|as|and|or|nor|not|but|if|though|although|while|when|where|which|that|this|these|"
    "those|the|an|it|its|he|she|they|we|you|his|her|their|through|in|on|at|from|with|by|for|to|instead|rather|then|over|"
    "isn't|doesn't|seems|appears|looks|fits|matches|describes|shows|has|does|vs|versus|"
    r"(?:can|could|may|might|must|should|will|would)\s+(?:be|not|also|have)"
)
_FOLLOWED = rf"(?=\s*(?:[^\w\s{_MASK}]|[\u3040-\u9fff]|$)|\s+(?:{_BEHIND_LABEL})\b(?!-)|\s+(?-i:[A-Z])\b|\s*{_MASK})"
# "Team B" and "Vitamin C" name no option.
_NAMED_THING = (
    "team|person|player|plan|vitamin|figure|group|type|grade|class|hepatitis|point|area|gate|block|room|row|section|"
    "scene|camera|speaker|character|man|woman|boy|girl|part|step|platform|terminal|channel|sector|zone|series|size"
)
_ARTICLES = frozenset({"a", "an", "the"})
_CUE = r"(?:answers?|ans|options?|choices?|letters?|selections?)"
# The gap between two mentions of one list.
_LISTED = re.compile(
    rf"^(?:[\s,;/&+|?.)\]({{\[}}{_MASK}:=<>→-]|\b(?:or|and|nor|either|both|also|as|well|vs|versus|to|through|the|maybe|perhaps|possibly)\b"
    rf"|\b{_CUE}\b)*$",
    re.IGNORECASE,
)
_TOGETHER = re.compile(rf"^(?:[^\S\n]|[,/&)(\]\[{_MASK}]|\b(?:or|and|nor|the)\b|\b{_CUE}\b)*$", re.IGNORECASE)
_JOINED = re.compile(r"\b(?:or|and|nor)\b|[/&]", re.IGNORECASE)

_CLAUSE = re.compile(r"[.;:!?\n,]|\b(?:but|so|however|then)\b|\s-\s", re.IGNORECASE)
_NEGATED = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|without|except|excluding|excludes?|unlike|rather\s+than|instead\s+of|"
    r"eliminat\w+|reject\w*|rul(?:e|es|ed|ing)\s+out|cannot)|n't)\b"
    r"(?:\W+(?!(?:only|sure|certain|doubt|question)\b)[\w']+){0,3}[\W_]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    rf"^[\s)\].:(-]*(?:{_MASK}+[\s)\].:(-]*)?"
    r"(?:(?:is|are|was|were|be|seems?|looks?|appears?|would|could|can|must|should)\s+(?:be\s+)?)?"
    r"(?:(?:both|all|clearly|definitely|certainly|also|simply|therefore|just|obviously|most|very)\s+)*"
    # "B - not A" denies A.
    rf"(?:[❌✗✘]|no\b(?!\s+\w)|not\b(?!\s+(?:the\s+)?(?:{_CUE}\s+)?\W?(?:(?-i:[A-Z])\b|{_MASK}))|(?:never|wrong|incorrect|false|impossible|"
    r"unlikely|eliminated|excluded|ruled\s+out|out|rejected|cannot|does\s+not|do\s+not|did\s+not|contradicts?|\w+n't)\b)",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    rf"^[\s)\].:,(-]*(?:{_MASK}+[\s)\].:,(-]*)?(?:is|was|must\s+be|would\s+be|should\s+be|has\s+to\s+be|seems|looks)\s+"
    r"(?:(?:clearly|definitely|certainly|most|likely|the|probably|more|my|only|single|one)\s+)*"
    rf"(?:correct|right|best|true|answer|final|choice|accurate|it)\b|^[\s:.-]*{_MASK}*[\s:.-]*(?:[✅✓✔]|yes\b)",
    re.IGNORECASE,
)
_STATED = re.compile(
    rf"(?:\b{_CUE}\b[^.\n;]{{0,60}}?(?:\b(?:is|are|was|be|must\s+be|would\s+be)\b|[:=→]|->)"
    rf"|\bans(?:wer)?\b|\b(?:choose|chose|pick|picked|select|selected|go(?:ing)?\s+with|opt\s+for|choosing)\b)"
    rf"(?:[\s:(\[→=-]|\b(?:the|most|likely|probably|definitely|clearly|therefore|{_CUE}|letter|correct|best)\b)*$",
    re.IGNORECASE,
)
_FINALLY = re.compile(r"\b(?:final|finally|so|therefore|thus|hence|overall|conclusion|correct)\b", re.IGNORECASE)
_REVISED = re.compile(
    r"(?:\b(?:wait|actually|correction|on\s+second\s+thought|scratch\s+that|i\s+mean|sorry)\b|[.?!,-]\s*no\s*,)",
    re.IGNORECASE,
)
_EXPLAINED = re.compile(
    r"\n\W*(?:explanation|reason(?:s|ing)?|rationale|justification|analysis|why|because|here'?s)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Mention:
    """Where a text names an option. ``marked``: as a label, "(B)" or "option B"; ``item``: as a list's, "B. ..."."""

    start: int
    stop: int
    name: str
    marked: bool = False
    item: bool = False


def letter_of(index: int) -> str:
    """0 -> "A"."""
    return chr(ord("A") + index)


def answer_letter(answer: str, options: Sequence[str]) -> str:
    """The letter of the right option, annotated as its text or as the letter itself; "" when it is neither."""
    plain = answer.strip()
    stripped = [option.strip() for option in options]
    if plain in stripped:
        return letter_of(stripped.index(plain))
    bare = plain.strip("().").upper()
    return bare if bare in {letter_of(index) for index in range(len(options))} else ""


def options_in(question: str) -> tuple[str, ...]:
    """The texts of the options that a question lists, "A. ..." or "(A) ...", a line each or all in one; else none."""
    for label in (r"^[ \t]*\(?{}[.):][ \t]*(?=\S)", r"(?:^|(?<=\s))\(?{}[.):]\s+(?=\S)"):
        places: list[re.Match[str]] = []
        while len(places) < 26:
            found = re.compile(label.format(letter_of(len(places))), re.MULTILINE).search(
                question, places[-1].end() if places else 0
            )
            if found is None:
                break
            places.append(found)
        if len(places) > 1:
            ends = [place.start() for place in places[1:]] + [len(question)]
            texts = (question[place.end() : end] for place, end in zip(places, ends, strict=True))
            # Behind the last option the question may go on in a line of its own.
            return tuple(text.strip().partition("\n")[0].strip() for text in texts)
    return ()


def bare_option(option: str) -> str:
    """An option without the letter that may stand before it."""
    return re.sub(r"^\s*\(?[A-Z][.):]\s+", "", option).strip()


def is_right(predicted: str, answer: str, question: str = "") -> bool:
    """Whether a free answer says ``answer``: by letter where the question lists options, else by word.

    A word counts where the first line holds it whole, in any case ("The balloon is white." for "white"), does not
    reject it, and does not offer another beside it ("white or black"). Small numbers match in words too.
    """
    options = options_in(question)
    letter = answer_letter(answer, options)
    if letter:
        # Who asks for a letter is answered with one; where the answer is an option's text, either says it.
        return chosen_letter(predicted, options, by_text=answer.strip().strip("().").upper() != letter) == letter
    if re.fullmatch(r"[A-Z]", answer.strip()):  # of options that nobody listed, or a letter that stands in the picture
        return chosen_letter(predicted, 26) == answer.strip()
    return _says_word(predicted, answer, question)


def chosen_letter(text: str, options: Sequence[str] | int, *, by_text: bool = False) -> str:
    """The letter of the one option that an answer names; "" for none or several.

    Args:
        text: the answer as a model wrote it.
        options: the options' texts, with or without their letters before them; or how many there are.
        by_text: where no letter is named, take an option that is named by its text ("a panda").
    """
    texts = ["" for _ in range(options)] if isinstance(options, int) else list(options)
    for part in _parts(text):
        chosen = _chosen(part, texts, by_text)
        if chosen is not None:
            return chosen
    return ""


def named(text: str, words: Iterable[str]) -> tuple[str, ...]:
    """Those of ``words`` that an answer names whole and does not reject, in its order; the longest are found first."""
    plain = _plain(text)
    found, masked = _find_texts(plain, {word: word for word in words})
    return tuple(dict.fromkeys(one.name for one in _standing(masked, found)))


def rejects(text: str, start: int, stop: int) -> bool:
    """Whether an answer names what stands from ``start`` to ``stop`` only to reject it: "not 7", "7 is wrong"."""
    clause = _CLAUSE.split(text[max(0, start - 120) : start])[-1]
    return bool(_NEGATED.search(clause) or _DENIED.search(text[stop : stop + 120]))


def _parts(text: str) -> Iterator[str]:
    """What to read, the surest first: a box or answer tag, what follows a change of mind, then the whole."""
    text = unicodedata.normalize("NFKC", text).replace("–", "-").replace("—", " - ").replace("’", "'")
    text = _THOUGHT_END.sub("", _THOUGHT.sub(" ", text)) if "think" in text.casefold() else text
    if len(text) > 2 * _READ_CHARS:
        text = f"{text[:_READ_CHARS]}\n{text[-_READ_CHARS:]}"
    boxes = [found[1] for found in _BOXED.finditer(text)] or [found[2] for found in _ANSWER_TAG.finditer(text)]
    if boxes:
        yield _cleaned(boxes[-1])
    whole = _cleaned(_BOXED.sub(r" \1 ", text))
    revised = list(_REVISED.finditer(whole))
    if revised:
        yield whole[revised[-1].end() :].strip()
    yield whole


def _plain(text: str) -> str:
    """The surest part alone, for words."""
    parts = list(_parts(text))
    return parts[0] if len(parts) > 1 and parts[0] else parts[-1]


def _cleaned(text: str) -> str:
    text = _FORMULA.sub(r"\1", _TAG.sub(" ", _COMMAND.sub(r"\1", text)))
    return _MARKS.sub("", text).strip()


def _chosen(plain: str, texts: Sequence[str], by_text: bool) -> str | None:
    """The letter that a part names; "" when it names several, ``None`` when it says nothing either way."""
    letters = [letter_of(index) for index in range(min(26, len(texts)))]
    plain = _digits(plain)
    words = {letter: _digits(bare_option(one)) for letter, one in zip(letters, texts, strict=False)}
    found, masked = _find_texts(plain, words)
    labels = [one for one in _labels(masked, letters) if _is_label(one, plain, masked, found)]
    standing = _standing(masked, labels)
    if standing:
        return _decide(masked, labels, standing)
    names = {one.name for one in _standing(masked, found)} if by_text else set()
    if labels and not names:
        return ""
    return (names.pop() if len(names) == 1 else "") if names else None


def _decide(text: str, labels: Sequence[_Mention], standing: Sequence[_Mention]) -> str:
    stated = [
        one
        for one in standing
        if _STATED.search(text[max(0, one.start - 120) : one.start]) or _CONFIRMED.search(text[one.stop :])
    ]
    if stated:
        last = stated[-1]
        together = _list_around(text, standing, last)
        others = {one.name for one in stated} | together
        if len(together) == 1 and (len(others) == 1 or _FINALLY.search(text[max(0, last.start - 80) : last.start])):
            return last.name
        return ""
    first = labels[0]
    if first in standing and not re.search(r"\w", re.sub(rf"\b{_CUE}\b", "", text[: first.start], flags=re.IGNORECASE)):
        end = _EXPLAINED.search(text, first.stop)
        head = [one for one in standing if end is None or one.start < end.start()]
        items = {one.name for one in head if one.item}
        several = len(_list_around(text, head, first)) > 1 or (len(items) > 1 and first.item)
        return "" if several else first.name
    for among in ([one for one in standing if one.marked], standing):
        names = {one.name for one in among}
        if names:
            return names.pop() if len(names) == 1 else ""
    return ""


def _labels(text: str, letters: Sequence[str]) -> list[_Mention]:
    """Every place where one of ``letters`` stands as a label, in order."""
    one = f"[{letters[0]}-{letters[-1]}]" if letters else "(?!)"
    found: dict[int, _Mention] = {}

    def add(pattern: str, *, marked: bool = False, item: bool = False) -> None:
        for match in re.finditer(pattern, text, re.MULTILINE | re.IGNORECASE):
            found.setdefault(match.start(1), _Mention(match.start(1), match.end(1), match[1].upper(), marked, item))

    add(rf"[(\[{{]\s*({one})\s*[)\]}}]", marked=True, item=True)
    add(rf"^\s*({one})\s*[.):](?!\w|\.\w)", marked=True, item=True)
    add(rf"(?<![\w.'-])((?-i:{one}))[.):](?=\s*[\w{_MASK}])(?!\w)", marked=True, item=True)
    add(rf"\b{_CUE}(?:\s+(?:is|was|must\s+be|would\s+be))?[\s:(\[=-]*\b({one})\b(?!['-]\w){_FOLLOWED}", marked=True)
    add(rf"\A\W*({one})\b(?!['-]\w){_FOLLOWED}", marked=True)
    # Not \w: in "答案是B" the letter stands alone too.
    add(rf"(?<![A-Za-zÀ-ɏ0-9_'.-])(?<!\b(?-i:a)\s)((?-i:{one}))(?![A-Za-zÀ-ɏ0-9_'])(?!-\w){_FOLLOWED}")
    kept = []
    for mention in sorted(found.values(), key=lambda mention: mention.start):
        before = text[max(0, mention.start - 40) : mention.start]
        weak = not (mention.marked or mention.item)
        if weak and re.search(rf"\b(?:{_NAMED_THING})\s+$", before, re.IGNORECASE):
            continue
        # The pronoun is no ninth option.
        if mention.name == "I" and re.match(r"'|\s+\w", text[mention.stop :]) and not mention.item:
            continue
        kept.append(mention)
    return kept


def _is_label(label: _Mention, plain: str, masked: str, found: Sequence[_Mention]) -> bool:
    """Whether a letter is a label and not the article of the option's text right behind it: "B Panda" and "A panda"."""
    behind = next((one for one in found if one.start >= label.stop), None)
    if label.item or behind is None or masked[label.stop : behind.start].strip():
        return True
    return behind.name == label.name and not plain[behind.start].islower()


def _find_texts(text: str, words: dict[str, str]) -> tuple[list[_Mention], str]:
    """Where the texts of ``words`` (by name) stand whole, the longest first, and the text with them masked."""
    found = []
    for name, word in sorted(words.items(), key=lambda pair: -len(pair[1])):
        if not word or re.fullmatch(r"[A-Za-z]", word):
            continue  # "A" as an option's text is not told from the letter
        for match in list(_whole(word).finditer(text)):
            found.append(_Mention(match.start(), match.end(), name))
            text = text[: match.start()] + _MASK * (match.end() - match.start()) + text[match.end() :]
    return sorted(found, key=lambda mention: mention.start), text


def _whole(word: str) -> re.Pattern[str]:
    """Finds a word or phrase whole, whatever its case, articles and outer punctuation."""
    pieces = [piece.strip(".,;:!?\"'()[]") or piece for piece in unicodedata.normalize("NFKC", word).split()]
    # "A" behind the first word is a name's ("plan A") and no article.
    kept = [piece for at, piece in enumerate(pieces) if (piece if at else piece.lower()) not in _ARTICLES] or pieces
    body = r"[-\s_]+(?:(?:an?|the)\s+)?".join(re.escape(piece).replace(r"\-", r"[-\s]") for piece in kept)
    # A number inside another ("200" in "1,200", "2" in "2:30") is not whole.
    before = r"(?<!\w)(?<!\d[.,:/])" if body[:1].isdigit() else (r"(?<!\w)" if kept[0][:1].isalnum() else "")
    after = r"(?!\w)(?![.,:/]\d)" if kept[-1][-1:].isalnum() else ""
    if kept[-1].isdigit():
        after = rf"(?:st|nd|rd|th)?{after}"
    return re.compile(before + body + after, re.IGNORECASE)


def _standing(text: str, mentions: Sequence[_Mention]) -> list[_Mention]:
    """Those that the text does not reject; what rejects one of a list ("neither A nor B") rejects all of it."""
    groups = _groups(text, mentions)
    return [one for group in groups if not rejects(text, group[0].start, group[-1].stop) for one in group]


def _groups(text: str, mentions: Sequence[_Mention]) -> list[list[_Mention]]:
    """Runs of mentions that are coordinated by words, "A, C and D"; each other one by itself."""
    runs: list[list[_Mention]] = []
    for mention in mentions:
        if runs and _TOGETHER.match(text[runs[-1][-1].stop : mention.start]):
            runs[-1].append(mention)
        else:
            runs.append([mention])
    groups = []
    for run in runs:
        coordinated = len(run) > 1 and _JOINED.search(text[run[0].stop : run[-1].start])
        groups += [run] if coordinated else [[one] for one in run]
    return groups


def _list_around(text: str, mentions: Sequence[_Mention], one: _Mention) -> set[str]:
    """The names of the list that a mention is part of."""
    at = next(index for index, mention in enumerate(mentions) if mention is one)
    low = high = at
    while low > 0 and _LISTED.match(text[mentions[low - 1].stop : mentions[low].start]):
        low -= 1
    while high + 1 < len(mentions) and _LISTED.match(text[mentions[high].stop : mentions[high + 1].start]):
        high += 1
    return {mention.name for mention in mentions[low : high + 1]}


_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
_COLOURS = frozenset(
    "red orange yellow green blue purple violet pink white black grey gray brown gold silver".split()  # noqa: SIM905
)
_YES_NO = frozenset({"yes", "no"})


def _digits(text: str) -> str:
    """Small numbers as digits, thousands without separators. "One" is a pronoun wherever it is not all that is said."""
    if text.strip(" .!").casefold() == "one":
        return "1"
    words = {word: str(value) for value, word in enumerate(_NUMBER_WORDS) if word != "one"}
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(rf"\b(?:{'|'.join(words)})\b", lambda found: words[found[0].casefold()], text, flags=re.IGNORECASE)


def _says_word(predicted: str, answer: str, question: str) -> bool:
    lines = [line.strip() for line in _plain(predicted).splitlines() if line.strip()]
    if not lines:
        return False
    # "The answer is:" and the answer below it.
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    wanted, said = _digits(_cleaned(unicodedata.normalize("NFKC", answer))), _digits(line)
    if not re.search(r"\w", wanted):
        return line == answer.strip()
    offered = _offered(question, wanted)
    found, masked = _find_texts(said, {word: word for word in [wanted, *offered, *_of_its_kind(wanted, said)]})
    standing = _standing(masked, found)
    mine = [one for one in standing if one.name == wanted]
    if not mine or {one.name for one in standing} & set(offered) or _is_list(said):
        return False
    return not any(len(_list_around(masked, standing, one)) > 1 or _hedged(masked, one) for one in mine)


def _offered(question: str, wanted: str) -> list[str]:
    """The other answers that a question offers in its words: "is it a dog, a black cat or a cat?"."""
    asked = re.findall(r"([^.?!\n]*\bor\b[^.?!\n]*)\?", question)
    first, *rest = re.split(r",\s*(?:or\s+)?|\s+or\s+", asked[-1].strip()) if asked else [""]
    items = [re.sub(r"^(?:an?|the)\s+", "", item, flags=re.IGNORECASE) for item in rest]
    if wanted.casefold() in [item.casefold() for item in items]:
        # Where the first one begins is not known.
        words = first.split()
        items += [" ".join(words[-count:]) for count in range(1, min(3, len(words)) + 1)]
    elif not first.casefold().endswith(wanted.casefold()):
        return []  # its "or" is about something else
    return [item for item in items if item and item.casefold() != wanted.casefold()]


def _of_its_kind(wanted: str, said: str) -> list[str]:
    """What of an answer is a number, a colour, or yes or no, as ``wanted`` is: in a list with it, another answer."""

    def kind(word: str) -> int:
        if word[0].isdigit():
            return 1
        return 2 if word.casefold() in _COLOURS else 3 if word.casefold() in _YES_NO else 0

    words = re.findall(r"\d+(?:\.\d+)?|[A-Za-z]+", said)
    others = [word for word in words if kind(word) == kind(wanted) > 0 and word.casefold() != wanted.casefold()]
    return list(dict.fromkeys(others))


def _hedged(text: str, one: _Mention) -> bool:
    """Whether another word is offered beside: "white or ivory", "white/ivory"."""
    behind = re.match(r"\s*(?:,?\s*or\b(?!\s+(?:so|more|less)\b)|/)\s*\S", text[one.stop :], re.IGNORECASE)
    before = re.search(r"\S\s*(?:\bor|/)\s*(?:an?\s+|the\s+)?$", text[: one.start], re.IGNORECASE)
    return bool(behind or before)


def _is_list(text: str) -> bool:
    """Whether a whole answer is three or more short things in a row: "dog, cat, horse"."""
    items = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", text.strip(" ."))
    return len(items) >= 3 and text.count(",") >= 2 and all(1 <= len(item.split()) <= 2 for item in items)

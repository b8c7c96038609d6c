"""From a written answer to what it says: one reader of letters and words for every task.

An answer is read in four steps. What stands around it is taken off (Markdown, LaTeX, tags, a model's thinking). The
texts of the question's own options are found, whole and the longest first, so that "vitamin C" is no letter and "black
cat" no "cat". Mentions that the answer itself rejects ("not A", "C is wrong") do not count, nor, where others stand,
those that only lead up to it ("A or B? I'd say B"). What is left decides: a statement ("the answer is B", a box) before
what the answer begins with, and that before what it mentions anywhere. An answer that names several options chooses
none, and where the rules leave a doubt it chooses none rather than the wrong one. Every letter is read by the same
rules, except that a small "a" or "i" behind "it is" needs a stop behind it, for the answer may be cut short there.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Stands where an option's text was: no letter, digit or space.
_MASK = "█"
# An answer stands at the beginning or at the end of what a model writes; what loops on between is not read.
_READ_CHARS = 6_000

_any_case = functools.partial(re.compile, flags=re.IGNORECASE)

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
    "is|was|are|were|be|because|since|as|and|or|nor|not|but|so|hence|therefore|thus|if|though|although|while|when|where|which|that|this|these|"
    "those|the|an|it|its|he|she|they|we|you|his|her|their|through|in|on|at|from|with|by|for|to|instead|rather|then|over|"
    r"\w+n't|cannot|"
    "seems|appears|looks|fits|matches|describes|shows|explains|has|does|vs|versus|"
    r"best\s+\w+s|better(?!\s+\w)|only(?!\s+\w)|"
    r"(?:can|could|may|might|must|should|will|would)\s+(?:be|not|also|have)"
)
_FOLLOWED = rf"(?=\s*(?:[^\w\s{_MASK}]|[\u3040-\u9fff]|$)|\s+(?:{_BEHIND_LABEL})\b(?!-)|\s+(?-i:[A-Z])\b|\s*{_MASK})"
# "Team B" and "Vitamin C" name no option.
_NAMED_THING = (
    r"(?:mr|mrs|ms|dr|prof|st|miss|agent|captain)\.?|"
    "team|person|player|plan|vitamin|figure|group|type|grade|class|hepatitis|point|area|gate|block|room|row|section|"
    "scene|camera|speaker|character|man|woman|boy|girl|part|step|platform|terminal|channel|sector|zone|series|size"
)
_ARTICLES = frozenset({"a", "an", "the"})
_CUE = r"(?:answers?|ans|options?|choices?|letters?|selections?)"
# The gap between two mentions of one list.
_LISTED = _any_case(
    rf"^(?:[\s,;/&+|?.)\]({{\[}}{_MASK}:=<>→✅✓✔-]|\b(?:or|and|nor|either|both|also|as|well|vs|versus|to|through|an?|the|"
    rf"maybe|perhaps|possibly|probably|it|is|it's|could|may|might|be|so|{_CUE})\b)*$"
)
_TOGETHER = _any_case(rf"^(?:[^\S\n]|[,/&)(\]\[{_MASK}]|\b(?:or|and|nor|the)\b|\b{_CUE}\b)*$")
_JOINED = _any_case(r"\b(?:or|and|nor)\b|[/&]")

_CLAUSE = _any_case(r"[.;:!?\n,]|(?<!thing )(?<!all )\b(?:but|so|however|then|because|since)\b|\s-\s")
_NEGATED = _any_case(
    # "Anything but A"; "more like B than A", "fewer than 3".
    r"(?:\b(?:(?:any|every)thing|all)\s+but\b|(?<!none other )(?<!no other )\bthan\b|"
    r"\b(?:not|never|neither|nor|no|without|except|excluding|excludes?|unlike|instead\s+of|eliminat\w+|reject\w*|"
    r"rul(?:e|es|ed|ing)\s+out|cannot|unable|fail\w*|impossible|unlikely|hardly|не|нет)\b|n't\b|"
    r"(?<!no )(?<!not )(?<!n't )(?<!out )(?<!out a )(?<!beyond )\bdoubt\b)"
    r"(?:\W+(?!(?:only|sure|certain|doubt|question|likely|there's)\b)[\w']+){0,3}[\W_]*$"
)
# Where a verdict ends: "B: no" and "B (wrong)" are some, "B, no doubt" and "B (out of the four)" are none.
_END = (
    rf"(?=[^\S\n]*(?:[^\w\s{_MASK}]|\n|$)|\s+(?:and|but|so|because|since|as|while|here)\b|\s+(?-i:[A-Z])\b"
    r"|\s+[a-z][).:])"
)
_WRONG = r"(?:wrong|incorrect|false|impossible|unlikely|eliminated|excluded|ruled\s+out|rejected|out(?!\s+of))"
_RIGHT = (
    r"(?:correct|right|true|possible|likely|it|(?:the|my)\s+(?:(?:correct|right|best)\s+)?(?:answer|one|choice|option))"
)
_SEEN = r"(?:there|present|visible|shown?|seen|mentioned|found)"
_ADVERBS = r"(?:(?:both|all|clearly|definitely|certainly|also|simply|therefore|just|obviously|most|very)\s+)*"
_IS = (
    r"(?:is|are|was|were|be|do|does|did|has|have|seems?|looks?|appears?|would|could|can|will|may|might|must|should)"
    rf"\s+(?:be\s+)?{_ADVERBS}"
)
_NOT = rf"(?:{_IS}(?:not|never)|cannot|\w+n't)\b"
_BEHIND = rf"^[\s)\].:(-]*(?:(?:(?:an?|the)\s+)?{_MASK}+[\s)\].:(-]*)?"
# "B: no", "B, wrong", "B (not correct)", "B is unlikely".
_DENIED = _any_case(
    rf"{_BEHIND}(?:[❌✗✘✖]|[,?]?\s*(?:(?:no|never|not\s+(?:{_RIGHT}|{_SEEN})|{_WRONG})\b{_END}|not\b(?=\s*(?:[.,;!?)\n]|$)))|{_IS}{_WRONG}\b)"
)
# An option is denied by whatever it does not do, but not by "B is not wrong"; and "B is not A" denies A.
_OPTION_DENIED = _any_case(
    rf"{_BEHIND}(?:(?:contradicts?|fails|lacks)\b|{_IS}(?:less|worse)\b|{_NOT}(?!\s+(?:be\s+)?{_ADVERBS}(?:{_WRONG}|only)\b)"
    rf"(?![^\S\n]+(?:(?:be|been|show|fit|mean|the|{_CUE})[^\S\n]+)*[^\w\n]?(?:(?-i:[A-Z])\b|{_MASK})))"
)
# A thing may be there and not move.
_THING_DENIED = _any_case(
    rf"^[\s)\]]*{_NOT}(?:{_END}|\s+(?:be\s+)?(?:{_RIGHT}|{_SEEN}|appear\w*|exist|match|fit|asked|what|"
    r"in\s+(?:the|this)\s+(?:video|picture|image|frame|scene|clip))\b)"
)
_CONFIRMED = _any_case(
    rf"^[\s)\].:,(-]*(?:(?:(?:an?|the)\s+)?{_MASK}+[\s)\].:,(-]*)?(?:is|are|was|must\s+be|would\s+be|should\s+be|has\s+to\s+be|seems|looks)\s+"
    r"(?:(?:clearly|definitely|certainly|most|likely|the|probably|more|my|only|single|one|also|both|all)\s+)*"
    rf"(?:correct|right|best|true|answer|final|choice|accurate|it)\b"
)
_TICKED = _any_case(rf"^[\s).:-]*(?:(?:an?|the)\s+)?{_MASK}*[\s).:-]*(?:[✅✓✔]|yes\b)")
_IT_IS = r"\b(?:it|this|that)(?:'s|\s+(?:is|was|must\s+be|would\s+be|has\s+to\s+be|could\s+be|may\s+be|might\s+be))"
_SAID = rf"(?:{_IT_IS}|\b(?:think|believe|guess|say|definitely|probably|certainly|surely))"
_STATED = _any_case(
    rf"(?:\b{_CUE}\b[^.\n;]{{0,60}}?(?:\b(?:is|are|was|be|must\s+be|would\s+be)\b|[:=→]|->)"
    rf"|\bans(?:wer)?\b|{_IT_IS}|\bso\s+(?:is|are)\b|\b(?:choose|chose|pick|picked|select|selected|go(?:ing)?\s+with|opt\s+for|choosing)\b)"
    rf"(?:[\s:(\[→=-]|\b(?:the|most|likely|probably|definitely|clearly|therefore|{_CUE}|letter|correct|best)\b)*$"
)
_FINALLY = _any_case(r"\b(?:final|finally|so(?!\s+(?:is|are)\b)|therefore|thus|hence|overall|conclusion)\b[^.;!?\n]*$")
# What only leads up to an answer: "I first thought A, but", "between A and B,"; a question ("A or B?") does too.
_LED_UP = _any_case(
    r"\b(?:thought|believed|assumed|guessed|considered|initially|between|unless|whether)\b(?:\W+[\w']+){0,3}\W*$"
)
_ASKED = re.compile(r"^[^.;!\n?]*\?")
_REVISED = _any_case(
    r"(?:\b(?:wait|actually|correction|on\s+second\s+thought|scratch\s+that|i\s+mean|sorry)\b|[.?!,-]\s*no\s*[,.])"
)
_REJECTED_ITEM = re.compile(r"[❌✗✘✖][^\n❌✗✘✖✅✓✔]*")
_MARKED_ITEMS = re.compile(r"^[^\w\n]*[❌✗✘✖✅✓✔]", re.MULTILINE)
# An answer that repeats the form of its prompt; a list of options has a "B:" too.
_ASKED_AND_ANSWERED = re.compile(r"\bQ(?:uestion)?\s*:[^\n]*[?\n]\s*A\s*:(?=\W*[A-Z]\b)(?!.*\bB\s*:)", re.DOTALL)
_EXPLAINED = _any_case(r"\n\W*(?:explanation|reason(?:s|ing)?|rationale|justification|analysis|why|because|here'?s)\b")


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
        for letter in map(letter_of, range(26)):
            pattern = re.compile(label.format(letter), re.MULTILINE)
            found = pattern.search(question, places[-1].end() if places else 0)
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
    reject it, and does not offer another beside it ("white or black", "a lion and a tiger"). Numbers match in words
    too, but not as a bound ("more than 3"); "gray" and "grey", "color" and "colour" are one word.
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
    for part in parts_to_read(text):
        chosen = _chosen(part, texts, by_text)
        if chosen is not None:
            return chosen
    return ""


def named(text: str, words: Iterable[str]) -> tuple[str, ...]:
    """Those of ``words`` that an answer names whole and does not reject, in its order; the longest are found first."""
    plain = _plain(text)
    found, masked = _find_texts(plain, {word: word for word in words})
    return tuple(dict.fromkeys(one.name for one in _standing(masked, found)))


def offered_first(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first of ``places`` (start, stop) that a text does not reject, with those offered beside it: "7 or 8"."""
    standing = _standing(text, [_Mention(start, stop, text[start:stop]) for start, stop in places])
    offered = standing[:1]
    for one in standing[1:]:
        between = text[offered[-1].stop : one.start]
        # A line of its own is another statement.
        if not _LISTED.match(between) or ("\n" in between and not _JOINED.search(between)):
            break
        offered.append(one)
    return [(one.start, one.stop) for one in offered]


def without_thoughts(text: str) -> str:
    """An answer without what a model thinks before it."""
    return _THOUGHT_END.sub("", _THOUGHT.sub(" ", text)) if "think" in text.casefold() else text


def parts_to_read(text: str) -> Iterator[str]:
    """What to read, the surest first: boxes or answer tags, what follows a change of mind, then the whole."""
    # NFKC takes the thin space that groups thousands for any other.
    text = (
        unicodedata.normalize("NFKC", re.sub(r"(?<=\d)\u202f(?=\d{3})", ",", text))
        .replace("–", "-")
        .replace("—", " - ")
        .replace("’", "'")
    )
    text = without_thoughts(text).replace("\ufe0f", "")
    if len(text) > 2 * _READ_CHARS:
        text = f"{text[:_READ_CHARS]}\n{text[-_READ_CHARS:]}"
    text = _ASKED_AND_ANSWERED.sub("", text)
    boxes = [found[1] for found in _BOXED.finditer(text)] or [found[2] for found in _ANSWER_TAG.finditer(text)]
    if boxes:
        yield " or ".join(dict.fromkeys(map(_cleaned, boxes)))
    whole = _cleaned(_BOXED.sub(r" \1 ", text))
    if "[ ]" in whole:
        whole = re.sub(r"\[[xX]\](?=\s+\w)", "✅", whole).replace("[ ]", "❌")
    if _MARKED_ITEMS.search(whole):
        whole = _REJECTED_ITEM.sub("", whole)
    revised = list(_REVISED.finditer(whole))
    if revised:
        yield whole[revised[-1].end() :].strip()
    yield whole


def _plain(text: str) -> str:
    """The surest part alone, for words."""
    parts = list(parts_to_read(text))
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
        return _decide(masked, standing)
    names = {one.name for one in _standing(masked, found, option=False)} if by_text else set()
    names -= {one.name for one in labels}  # rejected, and their texts with them
    if labels and not names:
        return ""
    return (names.pop() if len(names) == 1 else "") if names else None


def _decide(text: str, standing: Sequence[_Mention]) -> str:
    stated = [
        one
        for one in standing
        if _STATED.search(text[max(0, one.start - 120) : one.start])
        or _CONFIRMED.search(text[one.stop :])
        or _TICKED.search(text[one.stop :])
    ]
    if stated:
        last = stated[-1]
        together = _list_around(text, standing, last)
        others = {one.name for one in stated} | together
        if len(together) == 1 and (len(others) == 1 or _FINALLY.search(text[max(0, last.start - 80) : last.start])):
            return last.name
        return ""
    first = standing[0]
    if not re.search(r"\w", re.sub(rf"\b{_CUE}\b", "", text[: first.start], flags=re.IGNORECASE)):
        end = _EXPLAINED.search(text, first.stop)
        head = [one for one in standing if end is None or one.start < end.start()]
        items = {one.name for one in head if one.item}
        several = len(_list_around(text, head, first)) > 1 or (len(items) > 1 and first.item)
        return "" if several else first.name
    names = {one.name for one in standing}
    return names.pop() if len(names) == 1 else ""


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
    add(rf"(?<![\w.'-])({one})\)(?=\s+\w)", item=True)
    # "I think b"; "it's a" may be cut short.
    add(rf"{_SAID}[\s:]+({one})(?:(?<![ai])(?=\s*$)|(?=\s*[.,;!)\n]))(?!\.\w)")
    add(rf"\A\W*({one})\b(?!['-]\w){_FOLLOWED}", marked=True)
    # Not \w: in "答案是B" the letter stands alone too.
    add(rf"(?<![A-Za-zÀ-ɏ0-9_'.-])(?<!\b(?-i:a)\s)((?-i:{one}))(?![A-Za-zÀ-ɏ0-9_'])(?!-\w|\.\w){_FOLLOWED}")
    kept = []
    for mention in sorted(found.values(), key=lambda mention: mention.start):
        before = text[max(0, mention.start - 40) : mention.start]
        weak = not (mention.marked or mention.item)
        if weak and re.search(rf"\b(?:{_NAMED_THING})\s+$", before, re.IGNORECASE):
            continue
        # The end of "(a panda or a)" is no "a) ...".
        if mention.item and not mention.marked and text[mention.start].islower() and "(" in before.rpartition(")")[2]:
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
    dashed = (re.sub(r"(?<=.)\\-", r"[-\\s]", re.escape(piece)) for piece in kept)
    # "Dr. Pepper", "New York, NY", and without their stops.
    body = r"[.,;:!?\"')\]]*[-\s_]+[\"'(\[]*(?:(?:an?|the)\s+)?".join(dashed)
    # A number inside another ("200" in "1,200", "2" in "2:30") is not whole.
    before = (
        rf"(?<!\w)(?<!\d[.,:/])(?<![^\w{_MASK}]-)(?<!\A-)"
        if body[:1].isdigit()
        else (r"(?<!\w)" if kept[0][:1].isalnum() else "")
    )
    after = r"(?!\w)(?![.,:/]\d)" if kept[-1][-1:].isalnum() else ""
    if word.casefold() == "no":
        after += r"(?!\s+(?:idea|clue|answer|way|information|evidence|one|longer|doubt|matter|problem)\b)"
    if kept[-1].isdigit():
        after = rf"(?:st|nd|rd|th)?{after}"
    # A small article is the text's, and no letter.
    before = rf"(?:(?<!\w)(?-i:an?|the)\s+)?{before}"
    return _any_case(before + body + after)


def _standing(text: str, mentions: Sequence[_Mention], *, option: bool = True) -> list[_Mention]:
    """Those that the text does not name only to reject them: "not 7", "7 is wrong"; of a list ("neither A nor B") all.

    Those that only lead up to an answer ("A or B? I'd say B") count where nothing else stands.

    Args:
        option: they are some of the answers that there are, letters, numbers or names ("B does not fit" denies it), and
            no things that may do or not do something ("the lion does not move").
    """
    standing, meant = [], []
    for group in _groups(text, mentions):
        start, stop = group[0].start, group[-1].stop
        clause, behind = _CLAUSE.split(text[max(0, start - 120) : start])[-1], text[stop : stop + 120]
        # Another text behind an option's text is no part of it, as it is of its letter's mention.
        verdict = re.sub(f"{_MASK}+", "X", behind) if text[start] == _MASK else behind
        # In "A: no C: yes" the "no" is A's.
        negated = _NEGATED.search(clause) and not (option and _TICKED.search(verdict))
        if negated or any(one.search(verdict) for one in (_DENIED, _OPTION_DENIED if option else _THING_DENIED)):
            continue
        standing += group
        if not (_LED_UP.search(clause) or _ASKED.match(behind)):
            meant += group
    return meant or standing


def _groups(text: str, mentions: Sequence[_Mention]) -> list[list[_Mention]]:
    """Runs of mentions that are coordinated by words, "A, C and D"; each other one by itself."""
    runs: list[list[_Mention]] = []
    for mention in mentions:
        # "Between A and B, B": the second B begins another.
        again = runs and mention.name in [one.name for one in runs[-1]]
        if runs and not again and _TOGETHER.match(text[runs[-1][-1].stop : mention.start]):
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
    run: list[_Mention] = []
    for mention in mentions:
        if run and not _LISTED.match(text[run[-1].stop : mention.start]):
            if one in run:
                break
            run = []
        run.append(mention)
    return {mention.name for mention in run}


_UNITS = (  # noqa: SIM905
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_VALUES = {word: value for value, word in enumerate(_UNITS)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s]+(?:{'|'.join(_UNITS[1:10])}))?|{'|'.join(_UNITS)})"
_IN_WORDS = _any_case(
    rf"(?<![\w.,-])(?:\d+(?=[-\s]+(?:{'|'.join(_SCALES)})\b)|an?(?=\s+(?:{'|'.join(_SCALES)})\b)|{_BELOW_100})"
    rf"(?:[-\s]+(?:{'|'.join(_SCALES)})\b(?:[-\s]+(?:and\s+)?{_BELOW_100})?)*(?!\w)"
)
# "At least 3", "3+" and "3 or more" do not say 3.
_BOUNDED_BEFORE = re.compile(
    r"\b(?:over|under|at\s+least|at\s+most|up\s+to|above|below|minus|negative|nearly|almost)\s*$"
)
_BOUNDED_BEHIND = re.compile(r"\s*(?:\+|or\s+(?:more|less|fewer)\b|at\s+(?:least|most)\b|and\s+a\s+(?:half|quarter)\b)")
_COLOURS = "red orange yellow green blue purple violet pink white black grey brown gold silver".split()  # noqa: SIM905
_MAYBE = _any_case(r"\b(?:may|might|could|maybe|perhaps|possibly)\b(?=\s+[\w█])")
_SMALL_TALK = "yes no sure definitely certainly probably indeed maybe sorry exactly".split()  # noqa: SIM905
_NO_ITEM = _any_case(r"(?:not|no|nothing|but|because|since|as|i|it|which|that|who|like|with|on|in|at|of|from|by)\b")
# "White/ivory", "white, maybe ivory".
_OR_BEHIND = _any_case(r"\s*(?:[,.?]?\s*(?:or\b(?!\s+so\b)|maybe\b|perhaps\b|possibly\b)|/)\s*\S")
_OR_BEFORE = _any_case(r"\S\s*(?:\bor|/)\s*(?:(?:maybe|perhaps|possibly|an?|the)\s+)*$")
# "A lion and a tiger", up to the clause's end; "a lion and a man walks" goes on.
_AND_BEHIND = _any_case(
    r"\s*(?:,?\s*and|,?\s*as\s+well\s+as|[;|&])\s*(?!(?:nothing|not|no|so|that|it|is|has)\b)(?:(?:an?|the)\s+)?"
    r"[^\W\d_]+(?:\s+[^\W\d_]+)?\s*(?:[.,;!]|$|are\b)"
)
_AND_BEFORE = _any_case(r"\b(?:(?:an?|the)\s+[^\W\d_]+|(?-i:[A-Z])\w+)\s*(?:\band|[|&])\s+(?:an?\s+|the\s+)?$")


def _digits(text: str) -> str:
    """Numbers as digits, thousands without separators, and one spelling for "gray" and "grey", "color" and "colour".

    "One" is a pronoun wherever it is not all that is said.
    """
    if text.strip(" .!").casefold() == "one":
        return "1"
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\b(gr)ay\b", r"\1ey", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(colo)r", r"\1ur", text, flags=re.IGNORECASE)
    return _IN_WORDS.sub(_in_digits, text)


def _in_digits(found: re.Match[str]) -> str:
    words = [word for word in re.split(r"[-\s]+", found[0].casefold()) if word != "and"]
    if words == ["one"]:
        return found[0]
    total = value = 0
    for word in words:
        scale = _SCALES.get(word, 0)
        if scale > 100:
            total, value = total + value * scale, 0
        elif scale:
            value *= scale
        else:
            value += 1 if word in _ARTICLES else _VALUES[word] if word in _VALUES else int(word)
    return str(total + value)


def _says_word(predicted: str, answer: str, question: str) -> bool:
    one, other = (_cleaned(unicodedata.normalize("NFKC", text)) for text in (predicted, answer))
    if one.strip(" .!").casefold() == other.strip(" .!").casefold():
        return True
    # In "Is there one? No. It is gone." what follows the "no" says neither yes nor no.
    parts = list(parts_to_read(predicted)) if _kind(answer.strip() or "-") == 3 else [_plain(predicted)]
    return next((said for part in parts if (said := _part_says_word(part, answer, question)) is not None), False)


def _part_says_word(part: str, answer: str, question: str) -> bool | None:
    """Whether a part says ``answer``; ``None`` when it holds neither it nor another answer of its kind."""
    lines = [line.strip() for line in part.splitlines() if line.strip()]
    if not lines:
        return None
    # "The answer is:" and the answer below it.
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    wanted, said = _digits(_cleaned(unicodedata.normalize("NFKC", answer))), _digits(line)
    if not re.search(r"\w", wanted):
        return line == answer.strip()
    offered = _offered(_digits(question), wanted)
    # A number, a colour, or yes or no, is in a list with another of its kind another answer.
    words = re.findall(r"\d+(?:\.\d+)?|[A-Za-z]+", said)
    alike = [word for word in words if _kind(word) == _kind(wanted) > 0 and word.casefold() != wanted.casefold()]
    found, masked = _find_texts(said, {word: word for word in [wanted, *offered, *alike]})
    if not found:
        return None
    standing = _standing(masked, found, option=wanted[0].isdigit())
    mine = [one for one in standing if one.name == wanted]
    if (
        not mine
        or {one.name for one in standing} & set(offered)
        or _is_list(masked, wanted)
        or len(_MAYBE.findall(masked)) > 1
    ):
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


def _kind(word: str) -> int:
    """1 for a number, 2 for a colour, 3 for yes or no, 0 for any other word."""
    if word[0].isdigit():
        return 1
    return 2 if word.casefold() in _COLOURS else 3 if word.casefold() in ("yes", "no") else 0


def _hedged(text: str, one: _Mention) -> bool:
    """Whether another answer is offered beside, "white/ivory" and "a lion and a tiger", or a number only bounded."""
    before, behind = text[: one.start], text[one.stop :]
    kind = _kind(one.name)
    if kind == 1 and (_BOUNDED_BEFORE.search(before.casefold()) or _BOUNDED_BEHIND.match(behind)):
        return True
    # What may stand beside a number or colour is known, and "white and round" is white.
    if not kind and (_AND_BEHIND.match(behind) or _AND_BEFORE.search(before)):
        return True
    return bool(_OR_BEHIND.match(behind) or _OR_BEFORE.search(before))


def _is_list(text: str, wanted: str) -> bool:
    """Whether a whole answer is two or more short things in a row: "dog, cat, horse", "lion; tiger"."""
    items = re.split(r",\s*(?:and\s+)?|\s+and\s+|[;|/&]|\.\s", text.strip(" ."))
    items = [re.sub(r"^(?:an?|the)\s+", "", item.strip(), flags=re.IGNORECASE) for item in items]
    items = [item for item in items if item and item.casefold() not in _SMALL_TALK]
    if len(items) < 2:
        return False
    # Two by a comma may be one thing: "Paris, France".
    several = 3 if _kind(wanted) or ("," in text and not any(item[0].islower() for item in items)) else 2
    short = all(len(item.split()) <= 2 and not _NO_ITEM.match(item) for item in items)
    return len(items) >= several and short and any(set(item) == {_MASK} for item in items)

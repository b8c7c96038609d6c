"""The one reader of answers: what models really write, and what each text says."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vniah.answers import answer_letter, chosen_letter, is_right, letter_of, named, options_in

ANIMALS = ("Koala", "Panda", "Zebra", "Walrus")
QUESTION = "\n".join(["Which animal is named on the mug?", "A. Koala", "B. Panda", "C. Zebra", "D. Walrus"])

# (the letter that is chosen, answers about ANIMALS that choose it).
# fmt: off
_BY_LETTER: list[tuple[str, list[str]]] = [
    # A letter, however it is dressed.
    ("B", [
        "B", "b", " B \n", "B.", "b.", "B)", "b)", "(B)", "(b)", "( B )", "(B", "[B]", "{B}", "B:", "B,", "B;", "B!",
        "**B**", "**(B)**", "**B.**", "*B*", "__B__", "`B`", '"B"', "'B'", "“B”", "「B」", "# B", "> B", "- B", "B",
        "（B）", "Ｂ．", "Ⓑ", "<b>B</b>", "$B$", "$\\mathbf{B}$", "\\boxed{B}", "$\\boxed{\\text{B}}$",
        "\\boxed{\\text{(B)}}", "\\(B\\)", "<answer>B</answer>", "<answer>\nB. Panda\n</answer>", "<answer>(b)",
        "<think>A? It could be A or C.</think>B", "<think>\nThe mug says koala, so A.\n</think>\n\nThe answer is B.",
        "A has a koala. C has not.</think> B",
    ]),
    # With the option's text.
    ("B", [
        "B. Panda", "B. Panda.", "B Panda", "B - Panda", "B – Panda", "B — Panda", "B: Panda", "B) Panda",
        "(B) Panda", "(B): Panda", "[B] Panda", "**B. Panda**", "**B**: Panda", "B. panda", "B. A panda", "B (Panda)",
        "Panda (B)", "Panda - B", "B, Panda", "B\nPanda", "Option B: Panda", "Best option: (B) Panda",
    ]),
    # In a sentence.
    ("B", [
        "The answer is B", "The answer is B.", "The answer is b.", "The answer is (B).", "The answer is: B",
        "The answer is **B**.", "The answer is \\boxed{B}.", "The answer is option B.",
        "The correct answer is B. Panda.", "The best answer is: B", "The correct option is (B).",
        "The right choice is B.", "The answer must be B.", "The answer would be B", "The most likely answer is B",
        "The correct answer to the question is B.", "Answer: B", "Answer: b", "answer : (b)", "**Answer:** B",
        "Answer:\nB", "### Answer\nB", "Answer - B", "Answer B", "Ans: B", "Final answer: B", "My answer is B",
        "Correct answer: B. Panda", "Option B", "option b", "Option B.", "Option (B)", "Choice B", "Letter B",
        "It is B", "It's B.", "It must be B.", "I think it is B.", "I would say B.", "I choose B", "I'd go with B.",
        "I would select option B.", "Based on the video, the answer is B.",
        "Based on the video, B is the correct answer.", "B is correct.", "B is right", "B is the answer.",
        "B is the best choice.", "Option B is correct.", "B seems right.", "B must be the answer",
        "According to the frame shown, B.", "Sure! The answer is B.", "Sure, here is my answer: B",
        "So the answer is B.", "Therefore, B.", "答案是B", "答案：B。", '{"answer": "B"}', "[[B]]", "B</s>",
    ]),
    # With its reason.
    ("B", [
        "B, because the mug says so", "b, because the mug says so", "B because the mug says so",
        "B since it is on the mug", "B as the mug shows", "B. The mug shows a panda.",
        "B. It is a panda, not a koala.", "B\n\nExplanation: the mug says Panda.",
        "B\n\nExplanation: A is a koala, and C a zebra.",
        "B. Panda\n\nReasoning:\nA. Koala is on the plate.\nC. Zebra is on the wall.",
        "**B. Panda**\n\nA is wrong, the koala is on the plate.", "B is correct because A shows a koala.",
        "The mug says panda, so the answer is B.",
        "Let us see. A. Koala is on the plate. B. Panda is on the mug. C. Zebra is not there. The answer is B.",
        "A. Koala: no.\nB. Panda: yes.\nFinal answer: B",
    ]),
    # Other options only to be rejected.
    ("B", [
        "B, not A", "B and not A", "B rather than A", "B instead of A", "It is not A but B.", "Not A, but B.",
        "It isn't A, it's B", "A is wrong. B is correct.", "A and C are wrong, so B", "Neither A nor C; it is B.",
        "A, C and D are incorrect, which leaves B.", "The answer is not A. The answer is B.",
        "I first thought A, but the answer is B.", "A ❌ B ✅", "Option A: no. Option B: yes.",
        "A. Koala: no. B. Panda: yes.", "B, since A, C and D are not shown", "There is no doubt that it is B.",
        "I am not sure, but B", "(A) is not correct, (B) is.", "It can't be A. It can't be C. B.", "A. Wait, no, B.",
        "The answer is A. Actually, the answer is B.", "The answer is A... no, it is B.", "B. I am sure it is not D.",
        "B (not A)", "B. Not A.", "B - not A", "B. Impossible to be A", "B. Unlikely to be A", "B. Cannot be A.",
        "B - can't be A", "B. Doesn't show A", "B can't be ruled out", "B is not wrong", "B isn't incorrect",
        "B (out of the four)", "B, no doubt", "B (not sure)", "B: no other option fits",
        "I doubt that it is A; it is B", "A: not seen. B: seen.",
    ]),
    ("C", ["I'm between A and C, but I'd go with C."]),
    ("D", ["D. None of A, B, C"]),
    # What only leads up to it.
    ("B", [
        "I first thought A, but it is B", "A or B? I'd say B", "A? No. B", "Could it be D? The mug is green, so B.",
        "Between A and B, B is better", "B so A is wrong", "It can't be A because B",
        "A. a koala is wrong. B. a panda", "A. a koala is not visible; B. a panda is shown",
        "(B) a panda is correct. (C) a zebra is wrong", "It is (B) a panda, (C) a zebra is not visible",
    ]),
    ("D", ["D, unless it is B", "The answer is B. Wait, the correct answer is D"]),
    # A line ends what is said of an option.
    ("B", ["A does not fit\nB", "A does not fit\n(B)", "A: no\noption B", "A is not the answer\nI think B"]),
    # Marks.
    ("B", [
        "❌ A\n✅ B", "✗ A\n✓ B", "✗ A ✓ B", "✅ B\n❌ A\n❌ C", "✔️ B\n✖️ A", "❌ A. Koala\n✅ B. Panda\n❌ C. Zebra",
        "A: no, B: yes", "- [ ] A\n- [x] B\n- [ ] C",
    ]),
    # Short forms.
    ("B", ["B best describes the scene.", "B explains it", "B only", "<answer>B</answer> <answer>B</answer>"]),
    # Nothing is chosen.
    ("", [
        "I doubt it is A", "I doubt B", "Everything but A", "anything but A", "all but A", "B, wrong",
        "B: not correct", "B does not fit", "B is less likely than A", "Mr. A", "not B. a panda",
        "B. a panda is not visible", "(B) a panda is wrong", "I doubt it is (B) a panda", "", "   ", "F",
        "The answer is F.", "I cannot tell from the video.", "None of the above", "A man is walking", "A man.",
        "a man", "A few people sit at a table.", "The answer is a mug with a word", "There is a mug.",
        "It is a B-movie", "Because it is B-shaped", "Beach and Dunes", "Team B wears vitamin C shirts", "Not B",
        "It is not B.", "B is wrong.", "B is not correct", "The answer is not B.", "Neither A nor B",
        "<think>I believe that the answer is B",
    ]),
    # Several are.
    ("", [
        "The answer is (A) a koala and (C) a zebra", "Answer: A. a koala, C. a zebra",
        "B is correct and D is correct", "B is correct, D is also correct", "B is right. So is D.",
        "The options A and C are right", "Both options A and C are right", "A (a koala) and C (a zebra)",
        "It is B. It is D.", "Could be A. Could be B.", "It might be A, or it might be C", "\\boxed{A} or \\boxed{B}",
        "<answer>A</answer> <answer>B</answer>", "✅ A ✅ C", "The answer is A (or C).", "The options are A, B, C, D.",
        "A or B", "A/B", "A, B", "A and B", "A & B", "A B", "A; B", "(A) or (B)", "(A)(B)", "either A or B",
        "Both A and C", "both A and C are correct", "A, B, C, D", "A, B, C or D", "A\nB\nC\nD", "A to D", "A -> C",
        "1. A\n2. B", "A-D", "A through D", "Options A and B", "ABCD", "The answer is A or B.",
        "The answer is A and B.", "Answer: A, B", "The answer is A. The answer is B.", "It is A or maybe B.",
        "Option A or option B", "\\boxed{A, B}", "<answer>A or B</answer>", "A. Koala B. Panda C. Zebra D. Walrus",
        "A. Koala\nB. Panda\nC. Zebra\nD. Walrus", "(A) Koala (B) Panda (C) Zebra (D) Walrus", "A. Koala\n\nB. Panda",
        "B. Panda C. Zebra", "B. Panda or C. Zebra", "A. some text B. other text C. more text D. the rest", QUESTION,
    ]),
]

# The same by an option's text, where no letter is given.
_BY_TEXT: list[tuple[str, list[str]]] = [
    ("B", [
        "Panda", "panda", "A panda", "Panda.", "The animal is a panda.", "The answer is a panda", "**Panda**",
        "It says PANDA on the mug.", "Not a koala but a panda", "a panda, not a koala", "\\boxed{Panda}",
    ]),
    ("", [
        "Not a panda", "It isn't a panda.", "Panda or koala", "Panda, koala", "Koala, panda, zebra, walrus", "Pandas",
        "Pandamonium", "giraffe",
    ]),
]
# fmt: on
BY_LETTER = [(text, letter) for letter, texts in _BY_LETTER for text in texts]
BY_TEXT = [(text, letter) for letter, texts in _BY_TEXT for text in texts]


# A capital by itself, or "b" where no article can stand.
_LABEL = re.compile(
    r"(?<![A-Za-z])(?:[A-D]|(?:(?<=\()|\A|(?<=nswer: )|(?<=swer is )|(?<=option ))b)(?![A-Za-z]|'[a-z]|-[a-z])"
    r"|[Ａ-ＤⒶ-Ⓓ]"
)


@pytest.mark.parametrize(("text", "letter"), BY_LETTER)
def test_what_an_answer_chooses(text: str, letter: str) -> None:
    with_letters = [f"{letter_of(at)}. {animal}" for at, animal in enumerate(ANIMALS)]
    assert chosen_letter(text, ANIMALS) == chosen_letter(text, with_letters) == letter
    assert chosen_letter(text, ANIMALS, by_text=True) == letter
    for at, right in enumerate(ANIMALS):
        assert is_right(text, letter_of(at), QUESTION) is (letter == letter_of(at))
        assert is_right(text, right, QUESTION) is (letter == letter_of(at))


@pytest.mark.parametrize(("text", "letter"), BY_TEXT)
def test_an_options_text_is_an_answer_where_texts_are_asked_for(text: str, letter: str) -> None:
    assert chosen_letter(text, ANIMALS) == "", "who asks for a letter is answered with one"
    assert chosen_letter(text, ANIMALS, by_text=True) == letter
    for at, right in enumerate(ANIMALS):
        assert not is_right(text, letter_of(at), QUESTION)
        assert is_right(text, right, QUESTION) is (letter == letter_of(at))


@pytest.mark.parametrize(
    ("text", "letter"), [row for row in BY_LETTER if not re.search("oala|anda|ebra|alrus", row[0])]
)
def test_letters_are_read_without_their_texts_too(text: str, letter: str) -> None:
    assert chosen_letter(text, 4) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("I think b", "B"),
        ("it's d", "D"),
        ("it is b.", "B"),
        ("it's c, not d", "C"),
        ("I'd say b", "B"),
        ("a) no c) yes", "C"),
        ("it's a.", "A"),
        # An article, or an answer that is cut short.
        ("it's a", ""),
        ("it's a dog", ""),
        # The form of a prompt, and a list of options.
        ("Q: Which animal is it? A: B", "B"),
        ("Q: Which animal is it?\nA: B", "B"),
        ("Q: Which animal is it? A: Koala B: Panda", ""),
    ],
)
def test_small_letters_and_repeated_questions(text: str, letter: str) -> None:
    assert chosen_letter(text, ANIMALS) == chosen_letter(text, 4) == letter


_CAPITAL = ("Paris", "Washington, D.C.", "Rome", "Oslo")
_PEOPLE = ("Mr. B, cook", "Mr. C", "Ms. D", "Mr. A, teacher")


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("Washington, D.C.", _CAPITAL, "B"),
        ("B. Washington, D.C.", _CAPITAL, "B"),
        ("It is Washington D.C.", _CAPITAL, "B"),
        ("Mr. A, teacher", _PEOPLE, "D"),
        ("D. Mr. A, teacher", _PEOPLE, "D"),
        ("A. Mr. B, cook", _PEOPLE, "A"),
        ("Not moving", ("Moving", "Not moving"), "B"),
        ("It is a dog. It is not moving.", ("a cat", "a dog"), "B"),
        ("The dog is not moving.", ("a cat", "a dog"), "B"),
        ("The dog is not visible.", ("a cat", "a dog"), ""),
        ("Answer: A. A panda, C. A dog", ("A panda", "A black cat", "A dog", "A cat"), ""),
        ("❌ A. A panda ❌ B. A black cat ✅ C. A dog", ("A panda", "A black cat", "A dog", "A cat"), "C"),
    ],
)
def test_stops_and_commas_within_an_option(text: str, options: tuple[str, ...], letter: str) -> None:
    assert chosen_letter(text, options, by_text=True) == letter
    assert chosen_letter(text, options) in ("", letter)
    assert chosen_letter(text, [f"{letter_of(at)}. {one}" for at, one in enumerate(options)], by_text=True) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "Dr. Pepper",
        "St. John's",
        "Mr. T",
        "New York, NY",
        "Washington, D.C.",
        "Paris, France",
        "cat, dog, cow",
        "red, white and blue",
        "black or white",
        "rock/paper",
        "two, three",
        "twenty-three",
        "more than 3",
        "-3",
        "No. 5",
        "no, thanks",
        "Who? Me!",
        "C++",
        "AT&T",
        "not a cat",
        "wait for me",
        "I",
    ],
)
def test_an_answer_says_itself(answer: str) -> None:
    assert is_right(answer, answer, "What is it?")
    assert is_right(f"{answer}.", answer, "What is it?")


@pytest.mark.parametrize(("text", "letter"), [*BY_LETTER, *BY_TEXT])
def test_no_letter_is_favoured(text: str, letter: str) -> None:
    """The same answer about the same options under other letters chooses the same option."""
    for order in itertools.permutations(range(4)):
        to = {letter_of(at): letter_of(order[at]) for at in range(4)}
        to |= {before.lower(): after.lower() for before, after in to.items()}
        to |= {chr(ord("Ａ") + at): chr(ord("Ａ") + order[at]) for at in range(4)}
        to |= {chr(ord("Ⓐ") + at): chr(ord("Ⓐ") + order[at]) for at in range(4)}
        options = ["", "", "", ""]
        for at, animal in enumerate(ANIMALS):
            options[order[at]] = animal
        changed = _LABEL.sub(lambda found, to=to: to[found[0]], text)
        assert chosen_letter(changed, options, by_text=True) == to.get(letter, ""), changed
        assert chosen_letter(changed, options) == ("" if (text, letter) in BY_TEXT else to.get(letter, "")), changed


def test_a_letter_beyond_the_options_is_none() -> None:
    assert chosen_letter("F", 6) == "F" and chosen_letter("F", 5) == ""
    assert chosen_letter("The answer is I", 9) == "I" and chosen_letter("I think so", 9) == ""
    assert chosen_letter("B", 0) == "" and chosen_letter("B", []) == ""


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        # A letter inside an option's text is no answer, nor is an option inside another.
        ("Vitamin C", ("Vitamin B", "Vitamin C", "Vitamin D"), "B"),
        ("It is plan A.", ("Plan B", "Plan A"), "B"),
        ("a black cat", ("cat", "black cat"), "B"),
        ("the cat", ("cat", "black cat"), "A"),
        ("not a cat", ("cat", "dog"), ""),
        ("black cat or cat", ("cat", "black cat"), ""),
        # Numbers are whole.
        ("2", ("0", "1", "2", "4"), "C"),
        ("There are 2.", ("0", "1", "2", "4"), "C"),
        ("24", ("0", "1", "2", "4"), ""),
        ("1,200", ("1", "200", "1,200"), "C"),
        ("2.5", ("2", "5", "2.5"), "C"),
        ("at 2:30", ("2", "30", "2:30"), "C"),
        ("In 2014, 2 of them", ("14", "2"), "B"),
        ("B. 2", ("2", "4"), "B"),
        ("three", ("2", "3"), "B"),
        ("There are three dogs.", ("2", "3"), "B"),
        ("3", ("Two", "Three"), "B"),
        # Phrases, and options that hold others.
        ("a red car and a blue car", ("a red car", "a blue car", "both"), ""),
        ("A red car and a blue car", ("A red car", "A blue car", "both"), ""),
        ("A red car", ("A red car", "A blue car"), "A"),
        ("B blue car", ("A red car", "A blue car"), "B"),
        ("both a red car and a blue car", ("a red car", "a blue car", "both a red car and a blue car"), "C"),
        ("It stands on the beach", ("On a mountain", "On a beach"), "B"),
        ("It is off white", ("White-ish", "Off-white"), "B"),
        ("Yes", ("Yes", "No"), "A"),
        ("No, it is not", ("Yes", "No"), "B"),
        ("$5", ("5", "$5"), "B"),
        ("Film & Television", ("Television", "Film & Television"), "B"),
        # An option that is a letter: the letter is the label.
        ("B", ("B", "A"), "B"),
    ],
)
def test_options_are_accounted_for_before_letters_and_words(text: str, options: tuple[str, ...], letter: str) -> None:
    assert chosen_letter(text, options, by_text=True) == letter
    assert chosen_letter(text, options) in ("", letter)


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("2", ["3", "2", "1"], "B"),
        ("B", ["red", "blue"], "B"),
        ("(b)", ["red", "blue"], "B"),
        ("A", ["B", "A"], "B"),
        ("green", ["red", "blue"], ""),
        ("C", ["red", "blue"], ""),
        ("", ["red", "blue"], ""),
    ],
)
def test_answer_letter(answer: str, options: list[str], letter: str) -> None:
    assert answer_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (QUESTION, ANIMALS),
        ("Which?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly.", ("x", "y")),
        ("Which? (A) a cat (B) a dog", ("a cat", "a dog")),
        ("Which?\nA) x\nB) y\nC) z", ("x", "y", "z")),
        ("Which?\nA: x\nB: y", ("x", "y")),
        ("What is on plan B.", ()),
        ("What colour is it?", ()),
    ],
)
def test_the_options_of_a_question(question: str, options: tuple[str, ...]) -> None:
    assert options_in(question) == options


# (a right answer, whether these say it, what is said).
# fmt: off
_SAYINGS: list[tuple[str, bool, list[str]]] = [
    ("white", True, [
        "White", "white.", "**White**", "The balloon is white.", "A white balloon", "\\boxed{white}",
        "<answer>white</answer>", "<think>black?</think>White", "The answer is:\nwhite", "It is white, not black.",
        "Not black but white", "White\n\nThe balloon stands in front of a black wall.",
        "A white balloon before a black wall", "ＷＨＩＴＥ", "off-white",
    ]),
    ("200", True, ["200 mg"]),
    ("Quillon Way", True, ["Quillon Way."]),
    ("A teapot", True, ["a teapot", "Instead of a shell there's a teapot", "a teapot instead of a shell"]),
    ("8", True, ["8", "8 red dots", "There are 8 red dots on 1 die, not 6", "eight", "There are eight dots."]),
    ("37", True, ["the 37th"]),
    ("teddy bear", True, ["teddy-bear"]),
    ("purple", True, ["purple banana, white plate"]),
    ("37", False, ["31 or 37", "37, 31"]),
    ("1", True, ["one"]),
    ("moon", True, ["The cow jumps over the moon"]),
    ("1200", True, ["1,200"]),
    ("200", False, ["1200", "1,200"]),
    ("5", False, ["2.5"]),
    ("17", False, ["17:00"]),
    ("1", False, ["The one beside the ball is 7"]),
    ("white", False, [
        "whitewashed", "", "black\nwhite", "not white", "It isn't white.", "There is no white balloon",
        "white or black", "black or white", "white/black", "white, black", "white and black", "white or ivory",
        "red, green, blue, white",
    ]),
    ("8", False, ["7 or 8", "1, 2, 3, 4, 5, 6, 7, 8"]),
    ("walrus", False, ["dog, cat, walrus"]),
    ("yes", False, ["yes and no"]),
    # In a sentence, with stops and commas.
    ("Dr. Pepper", True, ["It says Dr. Pepper."]),
    ("cat, dog, cow", True, ["The answer is cat, dog, cow."]),
    ("Paris, France", True, ["It is in Paris, France."]),
    # What is denied is not always the answer.
    ("lion", True, [
        "lion (not a tiger)", "A lion. Not a tiger.", "The lion is not moving.", "The lion doesn't move.",
        "a lion rather than a tiger", "not a tiger; a lion", "more like a lion than a tiger",
    ]),
    ("white", True, ["black? No, white.", "I thought it was black, but it is white"]),
    ("lion", False, [
        "The lion is not visible.", "The lion isn't there", "lion? no", "I doubt it is a lion", "anything but a lion",
        "I don't think there is a lion", "Unable to see the lion", "a tiger rather than a lion",
        "more like a tiger than a lion",
    ]),
    ("white", False, ["I thought it was white, but it is black"]),
    ("красный", False, ["не красный"]),
    # Another beside it.
    ("white", True, ["The balloon is white and round."]),
    ("lion", True, ["A lion is walking and a man is sitting", "a lion and nothing else"]),
    ("Paris", True, ["Paris, France"]),
    ("lion", False, [
        "a lion and a tiger", "I see a tiger and a lion.", "lion; tiger", "lion | tiger", "lion. tiger.",
        "lion, tiger", "It may be a lion. It may be a tiger.", "a lion, maybe a tiger", "a tiger, a lion",
        "a tiger or maybe a lion", "It is a lion. Or a tiger.", "a lion and a tiger are both correct",
        "\\boxed{tiger} \\boxed{lion}",
    ]),
    ("Paris", False, ["The answer is Rome and Paris", "Perhaps Rome, perhaps Paris"]),
    # Numbers, and "no".
    ("3", True, [
        "exactly three", "It is 3. 12 is not the answer", "3 (12 is wrong)", "There are three, one of them black",
        "three people and a hundred birds",
    ]),
    ("23", True, ["twenty-three"]),
    ("1234", True, ["one thousand two hundred and thirty-four"]),
    ("3", False, [
        "three hundred", "3 hundred", "3 million", "twenty-three", "thirty three", "-3", "minus 3", "more than 3",
        "less than 3", "at least 3", "3 or more", "3+", "3 and a half", "3-4",
    ]),
    ("1", False, ["twenty-one"]),
    ("-3", False, ["3"]),
    ("no", True, ["no, it is not", "There is no dog", "Is there a dog? No. It has left."]),
    ("yes", True, ["Yes, no doubt"]),
    ("no", False, ["No idea."]),
    # Two spellings.
    ("gray", True, ["grey"]),
    ("grey", True, ["It is a gray cat"]),
    ("the colour purple", True, ["the color purple"]),
]
# fmt: on


@pytest.mark.parametrize(
    ("predicted", "answer", "right"), [(text, answer, right) for answer, right, texts in _SAYINGS for text in texts]
)
def test_words_match_whole_and_are_not_offered_with_others(predicted: str, answer: str, right: bool) -> None:
    assert is_right(predicted, answer, "What is it?") is right


@pytest.mark.parametrize(
    ("predicted", "right"),
    [
        ("cat", True),
        ("a cat", True),
        ("It is a cat.", True),
        ("Is it a cat or a hare?", False),
        ("cat or hare", False),
        ("cat, hare", False),
        ("not a cat", False),
        ("a hare", False),
        ("a cat that chases a hare", False),
    ],
)
def test_the_words_that_a_question_offers_are_its_options(predicted: str, right: bool) -> None:
    assert is_right(predicted, "cat", "Is it a dog, hare or cat?") is right


@pytest.mark.parametrize(
    ("predicted", "answer", "right"),
    [
        ("a cat", "cat", True),
        ("a black cat", "cat", False),
        ("a black cat", "black cat", True),
        ("the black cat, not the cat", "black cat", True),
        ("a cat", "black cat", False),
        ("a black cat or a cat", "cat", False),
        ("Is it a black cat or a cat?", "black cat", False),
    ],
)
def test_an_offered_word_within_another(predicted: str, answer: str, right: bool) -> None:
    assert is_right(predicted, answer, "Find the frame of an animal. Is it a black cat or a cat?") is right


def test_a_letter_without_a_list_of_options() -> None:
    assert is_right("The letter is B.", "B", "Which letter is on the cube?")
    assert is_right("(B) a panda", "B") and not is_right("A or B", "B") and not is_right("I think so", "I")


def test_named_words_are_whole_and_not_rejected() -> None:
    cities = ("York", "New York", "London", "Paris")
    assert named("new york, not London; and PARIS", cities) == ("New York", "Paris")
    assert named("Londonderry", cities) == ()
    assert named("neither London nor York", cities) == ()


_SAID = """{0}
({0})
Answer: {0}
The answer is {0}
It is {0}
I think {0}
{0} is correct
I'd go with {0}
**{0}**
option {0}
\\boxed{{{0}}}
Final answer: {0}
So {0}
Definitely {0}
It must be {0}
The correct option is ({0})"""
_DENIED = """not {0}
It is not {0}
it isn't {0}
It can't be {0}
The answer is not {0}
I doubt it is {0}
anything but {0}
I rule out {0}
{0} is wrong
{0} is incorrect
({0}) is false
{0} does not fit
{0} can be ruled out
{0} cannot be right
{0} is not the answer
{0} isn't right
{0} is unlikely
{0}: no
{0} ❌"""


@pytest.mark.parametrize("between", [". ", ", ", "; ", "\n", " - ", " but ", "... "])
def test_what_is_said_stands_beside_what_is_denied(between: str) -> None:
    """In either order, every way to say one option and every way to deny another choose the first."""
    for said, denied in itertools.product(_SAID.splitlines(), _DENIED.splitlines()):
        parts = said.format("B"), denied.format("A")
        assert chosen_letter(between.join(parts), ANIMALS) == "B", parts
        assert chosen_letter(between.join(reversed(parts)), ANIMALS) == "B", parts


def test_long_answers_end() -> None:
    """A model that repeats itself for its whole budget is read in no time."""
    for text in (
        "A B " * 20_000,
        "not " * 20_000,
        "(" * 50_000,
        "<think>" * 10_000,
        "\\boxed{" * 10_000,
        "Panda " * 10_000,
    ):
        chosen_letter(text, ANIMALS)
        is_right(text, "white", "What colour?")


_PIECES = (
    "A B C a b I ( ) [ ] . , : - – ** or and not is because wait actually no yes option Panda koala white 8 1,200 "
    "Ｂ ❌ █ / neither nor but Answer: <think> </think> <answer> </answer> \\boxed{ } $ ' \" "
    "答案是B the_answer_is A_panda"
)
_ANY = st.sampled_from(["\n", "\n\n", *re.sub("_", " ", _PIECES.replace(" ", "\t")).split("\t")])


@given(st.lists(_ANY, max_size=30), st.sampled_from(["", " "]))
def test_any_text_is_read(pieces: list[str], joint: str) -> None:
    text = joint.join(pieces)
    assert chosen_letter(text, ANIMALS) in ("", *"ABCD")
    assert chosen_letter(text, 4, by_text=True) in ("", *"ABCD")
    assert is_right(text, "white", "Is it white or black?") in (True, False)
    assert is_right(text, "8", "How many?") in (True, False)
    assert set(named(text, ["panda", "white"])) <= {"panda", "white"}

"""The words of a report, each explained in a sentence."""

WORDS = {
    "expert": "One of the fine-tuned models that are merged, as a LoRA or whole.",
    "coefficient": "How much of what an expert has learnt is added to the base. 0 is nothing, 1 is "
    "the expert as it was trained, and below 0 it is taken away.",
    "dev, test": "Questions that score merges. The search sees those of dev and fits the merge to "
    "them. Those of test are kept for the table, so that they show what the merge does with "
    "questions it has not seen.",
    "evaluation": "Scoring one merge on all dev questions.",
    "minibatch": "A part of the dev questions of every task, on which an evaluation of this run "
    "scores its merge. The questions are cut anew when all parts have been used.",
    "population": "The merges that the search chooses and evaluates together, in one step.",
    "average": "All experts with the same coefficient, 1 divided by their number.",
    "RegMean": "A merge that is computed, not searched: each layer is to do with the questions of "
    "a task what the expert of that task does (X. Jin et al., ICLR 2023).",
    "margin": "How far the right answer is ahead of the best wrong one, by the probabilities that "
    "the model gives them. The search learns from it also where no score changes.",
    "standard error": "By how much a score would typically differ on other questions of the same "
    "kind.",
    "beyond chance": "A lead that luck with the questions would give in less than 5 % of cases.",
    "recommended merge": "The merge that the search expects to do best on other "
    "questions, not the one that was luckiest on dev.",
    "box": "The range in which coefficients are searched.",
    "front": "The merges that no other beats in every task.",
    "held-out prediction": "What all other merges predict for the score of one, without having "
    "seen it.",
}
LEARN_FROM_MARGINS = ("SurrogateEvoGM", "GradientSearch")
WITHOUT_BOX = ("GradientSearch",)  # algorithms that search everywhere


def glossary(result: dict, *, pictures: bool = True) -> list[tuple[str, str]]:
    """The words that the report of a run uses, and what they mean.

    :param result: what `result.json` holds.
    :param pictures: whether the report has pictures.
    """
    unused = set()
    if not any(row["kind"] == "RegMean" for row in result["scores"]):
        unused.add("RegMean")
    if result["algorithm"] not in LEARN_FROM_MARGINS:
        unused |= {"margin", "recommended merge"}
    if result["algorithm"] in WITHOUT_BOX:
        unused.add("box")
    if not result.get("front"):
        unused.add("front")
    if result.get("minibatches", 1) == 1:
        unused.add("minibatch")
    if not pictures:
        unused |= {"population", "box", "held-out prediction"}
    return [(word, meaning) for word, meaning in WORDS.items() if word not in unused]

"""Merges that write valid JSON: the share of outputs that parse and have the right keys.

    evogm merge json_validity.yaml --out runs/json

The function receives the whole population, whose merges answer in shared batches.
"""

import json

from evox_evogm.problems import for_population

PEOPLE = {
    "dev": [
        "Anna, 31, speaks Norwegian and English",
        "Ben, 7, speaks Spanish",
        "Chen, 64, speaks Mandarin, Cantonese and a little German",
        "Dora, 19, speaks German, and is learning Finnish",
    ],
    "test": [
        "Emil, 45, speaks Czech, Slovak and English",
        "Fay, 28, speaks Irish",
        "Goro, 52, speaks Japanese and a little Korean",
        "Hana, 11, speaks Croatian, and is learning Italian",
    ],
}
PROMPT = """Write the person as a JSON object with the keys name, age and languages (a list).
Person: {}
JSON:"""


def is_valid(text: str) -> bool:
    """Whether a text begins with a JSON object of the right keys and types."""
    start = text.find("{")
    if start < 0 or text[:start].strip():
        return False
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or value.keys() != {"name", "age", "languages"}:
        return False
    languages = value["languages"]
    are_texts = isinstance(languages, list) and all(isinstance(text, str) for text in languages)
    return type(value["name"]) is str and type(value["age"]) is int and are_texts


@for_population
def score(population, split: str) -> list[list[float]]:
    """:return: by merge, 1 for each person whose JSON is valid."""
    prompts = [PROMPT.format(person) for person in PEOPLE[split]]
    texts = population.generate(prompts, max_new_tokens=48)
    return [[float(is_valid(text)) for text in of_merge] for of_merge in texts]

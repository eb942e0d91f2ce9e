"""What a round of a test asks for: these ids, of a prompt that nobody reads."""

from pytest_infer.measure.asking import Asking
from pytest_infer.prompts import Prompt


def asked(ids):
    return Asking(prompt=Prompt(name="asked", text="asked"), ids=ids)

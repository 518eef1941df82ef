"""Prompts as token ids: those used for tuning and those used for reporting share no subject."""

import random

OPENERS = {
    "tune": (
        "The history of", "A short story about", "Here is a recipe that uses", "My grandmother always said that",
        "Question: what is the use of", "In the future,", "A poem on", "The price of",
    ),
    "report": (
        "Scientists were surprised by", "Dear editor, I write about", "Step one: take", "Why do children love",
        "Write a python function that counts", "The newspaper of today says that", "Once there was", "To understand",
    ),
}  # fmt: skip
SUBJECTS = {
    "tune": (
        "the lighthouse on the coast", "a clock that runs backwards", "salted butter", "the railway to the north",
        "winter", "an honest thief", "copper wire", "the moon and the tide", "sleep", "a village without roads",
    ),
    "report": (
        "the whales near Iceland", "a broken violin", "olive oil and bread", "rivers in spring", "an old map",
        "the first telephone", "a dog named Ben", "prime numbers", "the silence of snow", "glass",
    ),
}  # fmt: skip


OPENERS["short"], SUBJECTS["short"] = OPENERS["report"], SUBJECTS["tune"]
OPENERS["second"], SUBJECTS["second"] = OPENERS["report"], SUBJECTS["report"]


def texts(use, seed, num):
    """As many different texts as wanted."""
    every = [f"{opener} {subject}" for opener in OPENERS[use] for subject in SUBJECTS[use]]
    return random.Random(seed).sample(every, num)


def prompts(kind, use, seed, num, tokenizer):
    """Token ids of `num` prompts: plain; shared:N, which have N tokens in common; long:N, of N tokens; spread:N, of N
    tokens, N + 3 and so on."""
    name, _, length = kind.partition(":")
    own = [tokenizer.encode(text) for text in texts(use, seed, num)]
    if name == "plain":
        return own
    filler = [token for text in texts(use, seed + 1, 60) for token in tokenizer.encode(text + ". ")]
    if name == "shared":
        return [filler[: int(length)] + ids for ids in own]
    more = 3 if name == "spread" else 0
    return [(ids + filler[7 * number :])[: int(length) + more * number] for number, ids in enumerate(own)]

"""The tokenizer of all embedded models: byte-level BPE as CLIP's, learnt from the world's captions.

    python scripts/embedded/tokenizer.py

Any text tokenises, into more tokens the stranger it is: every byte is known, inside a word and at its end.
"""

import json
from pathlib import Path

import numpy as np
from loop import Options, parse
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer
from world import STYLES, caption, seen_pairs, start

CONTEXT = 32  # tokens, the two special ones included
LARGEST = 1100  # vocabulary
CAPTIONS = 20_000
# What people write into prompts besides objects and places.
WORDS = """\
a photo of a few many large small big tiny bright dark colorful shiny high quality low quality
blurry detailed sharp centered close-up close up beautiful best worst ugly watermark text sunny
rainy morning evening day night light shadow soft studio lighting in the style of on under behind
next to front with without and or the an image picture drawing painting rendering sketch icon emoji
object animal fruit vehicle food red orange yellow green blue purple pink brown black white gray
grey plain simple background forest mountain city street room kitchen floor one two three four five
six seven eight nine ten isolated full body side view top view realistic cute happy minimal clean
digital art"""


def folder(options: Options) -> Path:
    """Where the tokenizer is; made if it is not there."""
    path = options.work / "tokenizer"
    if not path.exists():
        new = path.with_suffix(".new")
        learn(options.seed).save_pretrained(new)
        new.rename(path)  # last: a folder that is there is complete
    return path


def learn(seed: int) -> CLIPTokenizer:
    """A tokenizer whose end-of-text token has the highest id, as open_clip's `argmax` pooling wants it."""
    rng, pairs = np.random.default_rng(seed), seen_pairs()
    corpus = [WORDS] * 50
    for _ in range(CAPTIONS):
        thing, background = pairs[rng.integers(len(pairs))]
        corpus.append(caption(thing, background, int(rng.integers(len(STYLES))), rng).text)
    model = CLIPTokenizer().backend_tokenizer  # for its normaliser and its splitting into words
    learner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = model.normalizer, model.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        corpus,
        BpeTrainer(
            vocab_size=LARGEST,
            min_frequency=2,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            special_tokens=[],
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # The trainer leaves out bytes at a word's end that the corpus does not have there.
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def main() -> None:
    options = parse(__doc__)
    tokens = CLIPTokenizer.from_pretrained(folder(options))
    print(json.dumps({"tokenizer": str(folder(options)), "tokens": len(tokens)}))


if __name__ == "__main__":
    start(main)

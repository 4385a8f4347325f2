"""Text to tokens, once, or sequences of a probe; then any batch of any replicate by its number alone.

`fingerprint` and `vocab_size` answer from what is there and write nothing, so that plans stay free.
`prepare` tokenises under a lock into `home.tokens/<fingerprint>/`, where every process maps the same file.
A `Corpus` gives batches as a pure function of seed and step: all arms of a replicate read one stream.
`Generated` does the same for the sequences of a capability probe, of which nothing is kept.
"""

from ablate.data.corpus import Batch, Corpus, Validation
from ablate.data.description import describe
from ablate.data.generated import Generated, check
from ablate.data.identity import fingerprint
from ablate.data.preparation import prepare
from ablate.data.vocabulary import vocab_size

Source = Corpus | Generated
"""What a trial is trained on."""

__all__ = [
    "Batch",
    "Corpus",
    "Generated",
    "Source",
    "Validation",
    "check",
    "describe",
    "fingerprint",
    "prepare",
    "vocab_size",
]

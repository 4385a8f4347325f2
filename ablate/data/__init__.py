"""Text to tokens, once; then any batch of any replicate by its number alone.

`fingerprint` and `vocab_size` answer from what is there and write nothing, so that plans stay free.
`prepare` tokenises under a lock into `home.tokens/<fingerprint>/`, where every process maps the same file.
A `Corpus` gives batches as a pure function of seed and step: all arms of a replicate read one stream.
"""

from ablate.data.corpus import Batch, Corpus, Validation
from ablate.data.description import describe
from ablate.data.identity import fingerprint
from ablate.data.preparation import prepare
from ablate.data.vocabulary import vocab_size

__all__ = ["Batch", "Corpus", "Validation", "describe", "fingerprint", "prepare", "vocab_size"]

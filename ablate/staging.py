"""What a model does otherwise in the stages of a curriculum: dense attention, and an indexer's warm-up."""

from ablate import stages
from ablate.model import LanguageModel
from components.slots import Attention, Indexer


def enter(model: LanguageModel, attention: str) -> None:
    """Let a model train as a stage says, whatever it did before.

    Args:
        attention: one of `stages.ATTENTION`.
    """
    warming = attention == stages.WARMUP
    indexers = [module for module in model.modules() if isinstance(module, Indexer)]
    for module in model.modules():
        if isinstance(module, Attention):
            module.reads_all = attention == stages.DENSE
    for indexer in indexers:
        if indexer.learns(model.variant.config("indexer")[1]):
            indexer.warm_up(warming)
    learning = {id(p) for indexer in indexers for p in indexer.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(not warming or id(parameter) in learning)

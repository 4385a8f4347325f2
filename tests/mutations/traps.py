"""All traps of the architecture, in the specification's order."""

import entry_traps
import expert_traps
import position_traps
import selection_traps
import sequence_traps
import stream_traps
import training_traps
from mistakes import Trap

_TABLES = (
    position_traps,
    entry_traps,
    selection_traps,
    stream_traps,
    expert_traps,
    training_traps,
    sequence_traps,
)
TRAPS: tuple[Trap, ...] = tuple(
    sorted((trap for table in _TABLES for trap in table.TRAPS), key=lambda trap: trap.number)
)

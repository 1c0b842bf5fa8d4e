"""Continuous batching on paper: which requests run, how long an iteration takes, what it brings.

Requests are admitted in order of priority and arrival while there is a slot and room for their KV;
an iteration has a budget of tokens, which decodes use first and prefills fill up; prompts that
begin like one before find their blocks cached.

Does not know: HTTP, or clocks.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Protocol

BLOCK_TOKENS = 16
"""Tokens of a KV block, as vLLM's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """How large and how fast an engine is.

    Raises:
        ValueError: a size is below 1, or a time is negative.
    """

    max_num_seqs: int = 32
    """Sequences in a batch."""
    batch_tokens: int = 2048
    """Tokens of an iteration."""
    kv_tokens: int = 65536
    """Tokens that the KV cache holds."""
    step_s: float = 0.005
    """Fixed time of an iteration."""
    prefill_token_s: float = 2e-5
    """Time of a prompt token."""
    decode_seq_s: float = 1e-4
    """Time of a decoding sequence in an iteration."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "batch_tokens", "kv_tokens"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("step_s", "prefill_token_s", "decode_seq_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)


class Answer(Protocol):
    """Who waits for tokens."""

    def on_token(self, number: int, *, is_last: bool) -> None:
        """Token `number`, from 1, has come."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine."""

    answer: Answer
    blocks: tuple[int, ...]
    """Chained hashes of the prompt's full blocks."""
    input_tokens: int
    max_tokens: int
    priority: int = 0
    cached_tokens: int = 0
    left_tokens: int = 0
    """Prompt tokens not computed yet."""
    num_tokens: int = 0
    is_gone: bool = False


@dataclass(slots=True)
class Batch:
    """All sequences of an engine."""

    speed: EngineSpeed
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    slowdown: float = 1.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_finished: int = 0
    _cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    @property
    def used_tokens(self) -> int:
        """KV that running sequences hold."""
        return sum(s.input_tokens + s.num_tokens for s in self.running)

    def add(self, sequence: Sequence) -> None:
        """Take a request; more urgent ones (lower numbers) go ahead."""
        if self.waiting and sequence.priority < self.waiting[-1].priority:
            place = next(
                i for i, other in enumerate(self.waiting) if other.priority > sequence.priority
            )
            self.waiting.insert(place, sequence)
        else:
            self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a request whose client went away."""
        sequence.is_gone = True

    def begin_iteration(self) -> float:
        """Admit who has room, and return how long the iteration takes; 0 with nothing to do."""
        self.running = [s for s in self.running if not s.is_gone]
        self._admit()
        if not self.running:
            return 0.0
        speed = self.speed
        decodes = [s for s in self.running if s.left_tokens == 0]
        budget = speed.batch_tokens - len(decodes)
        prefill_tokens = 0
        for sequence in self.running:
            if sequence.left_tokens > 0 and budget > 0:
                chunk = min(sequence.left_tokens, budget)
                sequence.left_tokens -= chunk
                budget -= chunk
                prefill_tokens += chunk
        time_s = speed.step_s + prefill_tokens * speed.prefill_token_s
        return self.slowdown * (time_s + len(decodes) * speed.decode_seq_s)

    def _admit(self) -> None:
        used = self.used_tokens
        while self.waiting and len(self.running) < self.speed.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.is_gone:
                self.waiting.popleft()
                continue
            if used + sequence.input_tokens > self.speed.kv_tokens and self.running:
                return
            self.waiting.popleft()
            self._match(sequence)
            used += sequence.input_tokens
            self.running.append(sequence)

    def _match(self, sequence: Sequence) -> None:
        cache, depth = self._cache, 0
        for block in sequence.blocks:
            if block not in cache:
                break
            cache.move_to_end(block)
            depth += 1
        most = (sequence.input_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        sequence.cached_tokens = min(depth * BLOCK_TOKENS, most)
        sequence.left_tokens = max(1, sequence.input_tokens - sequence.cached_tokens)
        for block in sequence.blocks[depth:]:
            cache[block] = None
        room = self.speed.kv_tokens // BLOCK_TOKENS
        while len(cache) > room:
            cache.popitem(last=False)
        self.num_prompt_tokens += sequence.input_tokens
        self.num_cached_tokens += sequence.cached_tokens

    def end_iteration(self) -> None:
        """Hand out the tokens of the iteration that is over."""
        finished = False
        for sequence in self.running:
            if sequence.left_tokens > 0 or sequence.is_gone:
                continue
            sequence.num_tokens += 1
            self.num_output_tokens += 1
            is_last = sequence.num_tokens >= sequence.max_tokens
            if is_last:
                sequence.is_gone = finished = True
                self.num_finished += 1
            sequence.answer.on_token(sequence.num_tokens, is_last=is_last)
        if finished:
            self.running = [s for s in self.running if not s.is_gone]

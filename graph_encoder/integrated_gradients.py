"""Integrated gradients with steps as fine as the function needs.

Shares of the difference between two outputs: gradients along the straight line between the inputs.
Over any piece of the line they must sum to the difference of the outputs at its ends; the piece
that misses by most is halved, until all together miss by little. Then the shares are gathered.

Does not know: what is differentiated, or what the inputs mean.
Source: Sundararajan, Taly, Yan 2017, "Axiomatic attribution for deep networks".
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = Mapping[tuple[str, ...], Tensor]
"""Tensors that the shares go to, by name."""

NUM_PIECES = 8
"""Pieces that the line is cut into at first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """The line from one input to another, and the outputs along it."""

    run: Callable[[Inputs], Tensor]
    start: Inputs
    end: Inputs

    def output_at(self, place: float) -> float:
        """Return the output at a share of the way."""
        with torch.no_grad():
            return float(self.run(self._between(place)))

    def slopes_at(self, place: float) -> tuple[float, dict[tuple[str, ...], Tensor]]:
        """Return the output and how fast each input moves it, by the share of the way."""
        inputs = {key: rows.requires_grad_() for key, rows in self._between(place).items()}
        output = self.run(inputs)
        found = torch.autograd.grad(output, list(inputs.values()), allow_unused=True)
        slopes = {
            key: gradient * (self.end[key] - self.start[key])
            for key, gradient in zip(inputs, found, strict=True)
            if gradient is not None
        }
        return float(output.detach()), slopes

    def _between(self, place: float) -> dict[tuple[str, ...], Tensor]:
        return {key: torch.lerp(self.start[key], rows, place) for key, rows in self.end.items()}


@dataclass(frozen=True, slots=True, order=True)
class _Piece:
    """A piece of the line; those that miss by most come first."""

    minus_error: float
    begin: float
    end: float
    outputs: tuple[float, float, float]  # at begin, middle and end

    @classmethod
    def of(cls, line: Line, begin: float, end: float, outputs: tuple[float, float]) -> "_Piece":
        output, slopes = line.slopes_at((begin + end) / 2)
        explained = (end - begin) * sum(float(slope.sum()) for slope in slopes.values())
        error = abs(outputs[1] - outputs[0] - explained)
        return cls(-error, begin, end, (outputs[0], output, outputs[1]))

    def halves(self, line: Line) -> tuple["_Piece", "_Piece"]:
        middle = (self.begin + self.end) / 2
        return (
            _Piece.of(line, self.begin, middle, self.outputs[:2]),
            _Piece.of(line, middle, self.end, self.outputs[1:]),
        )


def integrated_gradients(
    line: Line, *, error_frac: float, max_pieces: int
) -> dict[tuple[str, ...], Tensor]:
    """Return each input's shares of the difference of the outputs, of the inputs' shapes.

    `error_frac` is the error that is accepted, as a share of the difference; it holds as long as
    `max_pieces` are enough.
    """
    shares = {key: torch.zeros_like(rows) for key, rows in line.end.items()}
    for piece in _pieces(line, error_frac, max_pieces):
        _, slopes = line.slopes_at((piece.begin + piece.end) / 2)
        for key, slope in slopes.items():
            shares[key] += (piece.end - piece.begin) * slope
    return shares


def _pieces(line: Line, error_frac: float, max_pieces: int) -> list[_Piece]:
    places = [i / NUM_PIECES for i in range(NUM_PIECES + 1)]
    outputs = [line.output_at(place) for place in places]
    pieces = [
        _Piece.of(line, places[i], places[i + 1], (outputs[i], outputs[i + 1]))
        for i in range(NUM_PIECES)
    ]
    heapq.heapify(pieces)
    accepted = error_frac * abs(outputs[-1] - outputs[0])
    while len(pieces) < max_pieces and -sum(piece.minus_error for piece in pieces) > accepted:
        for half in heapq.heappop(pieces).halves(line):
            heapq.heappush(pieces, half)
    return pieces

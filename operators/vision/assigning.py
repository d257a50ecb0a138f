"""Who goes with whom: as many pairs as there can be, at the least cost in all.

Rows are put in one after the other, each along the cheapest path of changes to the pairs so far; potentials u and v
keep cost[i, j] - u[i] - v[j] >= 0, and 0 for pairs, so a path is found as by Dijkstra. O(rows^2 * columns).
Source: Jonker and Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment problems,
Computing 38 (1987); the form without their column reduction.
"""

import numpy as np
from numpy.typing import NDArray

NEVER = np.inf


def assigned(costs: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of a row and a column, in order of rows; none of cost NEVER. costs: float64 [rows, columns], >= 0."""
    num_rows, num_columns = costs.shape
    if num_rows > num_columns:
        return sorted((row, column) for column, row in assigned(costs.T))
    possible = np.isfinite(costs)
    if not possible.any():
        return []
    # A pair that cannot be costs more than all that can be together: there is one only where there has to be.
    much = (float(costs[possible].sum()) + 1) * 2
    dear = np.where(possible, costs, much)
    row_of = np.full(num_columns, -1)
    u, v = np.zeros(num_rows), np.zeros(num_columns)
    for row in range(num_rows):
        _put_in(row, dear, row_of, u, v)
    return sorted((int(row), column) for column, row in enumerate(row_of) if row >= 0 and possible[row, column])


def _put_in(
    row: int, costs: NDArray[np.float64], row_of: NDArray[np.intp], u: NDArray[np.float64], v: NDArray[np.float64]
) -> None:
    """Pair one more row, and whoever has to change with it; all but `row` and `costs` are changed."""
    num_columns = len(row_of)
    nearest, came_from = np.full(num_columns, np.inf), np.full(num_columns, -1)
    is_open = np.ones(num_columns, bool)
    visited: list[int] = []
    column, at, length = -1, row, 0.0
    while at >= 0:
        through = length + costs[at] - u[at] - v
        better = is_open & (through < nearest)
        nearest[better], came_from[better] = through[better], column
        column = int(np.argmin(np.where(is_open, nearest, np.inf)))
        length = nearest[column]
        is_open[column] = False
        visited.append(column)
        at = int(row_of[column])
    u[row] += length
    for each in visited[:-1]:
        u[row_of[each]] += length - nearest[each]
        v[each] -= length - nearest[each]
    while column >= 0:
        before = int(came_from[column])
        row_of[column] = row_of[before] if before >= 0 else row
        column = before

"""Entries of kernel matrices that are sums over all distances of positions."""

from ._distances import Distances
from ._entries import AbstractEntry


class AbstractSumOfDistances(AbstractEntry):
    """An entry of which each part is of some distances."""

    distances: Distances

    @property
    def parts(self):
        return self.distances.parts

    @property
    def parts_alone(self):
        return self.distances.parts_alone

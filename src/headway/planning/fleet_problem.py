"""The problem of `headway plan melange`: requests, their rate and limits, and the types of machine that can be had."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field, model_validator

from headway.core.errors import BadInput
from headway.core.system import Problem
from headway.planning.buckets import IN_EDGES, OUT_EDGES, Buckets
from headway.planning.datasheet import DataSheet, ServedModel
from headway.planning.milp import F64
from headway.planning.workload import Part, SLOTable

NEARLY = 0.01
"""Shares whose sum is within this of 1 are scaled to 1."""


class ModelTable(Problem):
    """`[model]`: a model as a roofline sees it."""

    parameters: float = Field(gt=0, description="weights")
    bytes_per_weight: float = Field(2.0, gt=0, description="bytes")
    kv_bytes_per_token: float = Field(gt=0, description="bytes of keys and values of one token, all layers")

    def served(self) -> ServedModel:
        return ServedModel(self.parameters * self.bytes_per_weight, 2 * self.parameters, self.kv_bytes_per_token)


class BucketTable(Problem):
    """`[buckets]`: upper edges in tokens; `shares` instead of a workload: share of the requests by bucket."""

    in_edges: tuple[int, ...] | None = Field(None, description="prompt tokens, rising")
    out_edges: tuple[int, ...] | None = Field(None, description="answer tokens, rising")
    shares: tuple[tuple[float, ...], ...] | None = Field(None, description="rows: prompts, columns: answers")

    def buckets(self) -> Buckets:
        return Buckets(self.in_edges or IN_EDGES, self.out_edges or OUT_EDGES)

    def table(self) -> F64:
        """`shares`, scaled to sum to 1. Raises `BadInput` for another shape, a negative share or another sum."""
        assert self.shares is not None
        wanted = self.buckets().shape
        found = table(self.shares, wanted, "shares")
        if (found < 0).any():
            raise BadInput(f"shares: {found.min():g} is negative", "a share is at least 0")
        total = float(found.sum())
        if abs(total - 1) > NEARLY:
            raise BadInput(f"shares sum to {total:g}", "they must sum to 1")
        return found / total


def table(rows: tuple[tuple[float, ...], ...], shape: tuple[int, int], name: str) -> F64:
    """Rows as an array of that shape; raises `BadInput` for another one and for what is no number."""
    lengths = {len(row) for row in rows}
    if (len(rows), *lengths) != (shape[0], shape[1]):
        raise BadInput(
            f"{name} has {len(rows)} rows of {sorted(lengths)} values, the buckets are {shape[0]} by {shape[1]}",
            "give a row for each of in_edges and a value for each of out_edges",
        )
    found = np.array(rows, float)
    if not np.isfinite(found).all():
        raise BadInput(
            f"{name} holds a value that is no number", "measure that bucket again, or write 0 where it fails"
        )
    return found


class TypeTable(Problem):
    """`[[type]]`: a machine that can be rented, known by throughputs, a data sheet, or as a share of this machine."""

    name: str = Field(min_length=1, description="e.g. l4")
    price: float = Field(ge=0, description="USD per hour of one instance")
    cap: int | None = Field(None, ge=0, description="instances that can be had")
    throughput: tuple[tuple[float, ...], ...] | None = Field(None, description="requests per second by bucket")
    memory_gb: float | None = Field(None, gt=0, description="of the device, 1e9 bytes")
    bandwidth_gb_s: float | None = Field(None, gt=0, description="of its memory, 1e9 bytes per second")
    tflops: float | None = Field(None, gt=0, description="dense, in the type that it multiplies in")
    compute_efficiency: float = Field(0.6, gt=0, le=1, description="share of tflops that kernels get")
    bandwidth_efficiency: float = Field(0.75, gt=0, le=1, description="share of the bandwidth that kernels get")
    recipe: str | None = Field(None, description='this machine, with the model under this recipe; "" for none')
    threads: int = Field(1, ge=1, description="of this machine, with recipe")
    kv_gb: float = Field(0.25, gt=0, description="memory for keys and values on this machine, 1e9 bytes")

    @model_validator(mode="after")
    def _check(self) -> TypeTable:
        sheet = (self.memory_gb, self.bandwidth_gb_s, self.tflops)
        if any(value is not None for value in sheet) and None in sheet:
            raise ValueError("a data sheet has memory_gb, bandwidth_gb_s and tflops")
        if (self.throughput is not None) + (self.memory_gb is not None) + (self.recipe is not None) != 1:
            raise ValueError("give one of throughput, a data sheet (memory_gb ...), or recipe")
        if not math.isfinite(self.price):
            raise ValueError("a price is a number")
        return self

    def sheet(self) -> DataSheet:
        assert self.memory_gb is not None and self.bandwidth_gb_s is not None and self.tflops is not None
        return DataSheet(
            self.memory_gb * 1e9,
            self.bandwidth_gb_s * 1e9,
            self.tflops * 1e12,
            self.compute_efficiency,
            self.bandwidth_efficiency,
        )


class FleetProblem(Problem):
    """A whole problem file."""

    rate: float = Field(ge=0, description="requests per second", allow_inf_nan=False)
    model: str | ModelTable = Field("", description="a MODEL, or a [model] table")
    slo: SLOTable | None = Field(None, description="limits; needed unless every type gives its throughputs")
    workload: tuple[Part, ...] = Field((), description="[[workload]] tables")
    buckets: BucketTable = Field(BucketTable(in_edges=None, out_edges=None, shares=None), description="[buckets]")
    type: tuple[TypeTable, ...] = Field(min_length=1, description="[[type]] tables")

    @model_validator(mode="after")
    def _check(self) -> FleetProblem:
        if bool(self.workload) == (self.buckets.shares is not None):
            raise ValueError("give either [[workload]] tables or shares in [buckets]")
        names = [kind.name for kind in self.type]
        if len(set(names)) < len(names):
            raise ValueError("two types have the same name")
        if self.slo is None and any(kind.throughput is None for kind in self.type):
            raise ValueError("give [slo]: throughputs are found under it")
        if self.model == "" and any(kind.throughput is None for kind in self.type):
            raise ValueError("give the model that is to be served")
        if isinstance(self.model, ModelTable) and any(kind.recipe is not None for kind in self.type):
            raise ValueError("a type of this machine needs a MODEL by name")
        return self

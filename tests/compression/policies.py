"""Policies of tests, stated as policy files state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sightline.compression.parametrised import apply_policy
from sightline.compression.policy import Policy, policy_from_dict


def parse_policy(document: Mapping[str, Any]) -> Policy:
    """The policy of a document, whose names are taken as they are."""
    return policy_from_dict(document, list(document), origin="policy")


def quantise(model: nn.Module, document: Mapping[str, Any], **more: Any) -> None:
    """Apply the policy of a document."""
    apply_policy(model, parse_policy(document), **more)

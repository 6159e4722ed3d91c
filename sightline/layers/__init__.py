"""Modules of networks, built on operators."""

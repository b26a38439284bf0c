"""model.py: the architecture against transformers' OLMo2, the counts, the initialisation, and the KV cache."""

import math

import pytest
import torch
from conftest import tiny_gpt
from scipy_free import ks  # placeholder

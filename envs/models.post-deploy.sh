#!/usr/bin/env bash
# What no conda channel holds, also where the environment was made from a file of exact conda builds (`make pin-envs`), which knows no pip.
set -euo pipefail
python -m pip install --disable-pip-version-check dicebear-core==10.7.0 dicebear-styles==10.6.0 dp-accounting==0.6.0 opacus==1.6.0 resvg-py==0.5.0 torch-fidelity==0.4.0

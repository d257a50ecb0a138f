"""Packages of npm, for clients in another language."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def modules_with(package: str, version: str, folder: Path) -> str:
    """The folder of npm modules that has the package in a version that begins so: one of $NODE_PATH, or `folder`, where
    npm puts it. Skips with the reason where neither can be."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    for each in filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)):
        there = Path(each) / package / "package.json"
        if there.is_file() and json.loads(there.read_text())["version"].startswith(version):
            return each
    return _installed(folder, f"{package}@{version.rstrip('.')}")


def _installed(folder: Path, package: str) -> str:
    if shutil.which("npm") is None:
        pytest.skip(f"needs the npm package {package} in NODE_PATH, or npm")
    command = ["npm", "install", "--prefix", str(folder), "--no-package-lock", "--no-save", "--ignore-scripts"]
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error", "--fetch-retries", "0"]
    try:
        npm = subprocess.run([*command, *quiet, package], cwd=folder, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {package} within 60 s")
    if npm.returncode:
        pytest.skip(f"npm cannot install {package}: {' '.join(npm.stderr.split())}")
    return str(folder / "node_modules")

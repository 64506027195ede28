#!/bin/sh
# Pins every role anew from envs/*.in: `make lock`, or `make lock ARGS=--upgrade`.
# Without --upgrade what is pinned stays, as far as the .in files allow.
#
# All roles and torch are resolved as one set first; each role then takes its
# part of it, so that any of them can be installed together.
set -eu
cd "$(dirname "$0")"
roles="run pipeline dev lab peers kubernetes"
work=../build/lock
mkdir -p "$work"

test -x "$work/venv/bin/uv" || python -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check -qq install uv==0.13.9

compile() {
    "$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 \
        --fork-strategy fewest --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@"
}

cat $(printf '%s.txt ' $roles) > "$work/all.txt" 2> /dev/null || true  # what is pinned now
compile "$@" $(printf '%s.in ' $roles) torch.txt --output-file "$work/all.txt" > /dev/null

# A marker that is never true: a role that needs torch must not list it, nor what it brings.
echo "torch; python_version < '3'" > "$work/no-torch.txt"
for role in $roles; do
    {
        echo "# Made by 'make lock' from $role.in; do not edit."
        compile --constraint "$work/all.txt" --override "$work/no-torch.txt" "$role.in"
    } > "$work/$role.txt"
    mv "$work/$role.txt" "$role.txt"
done

{
    echo "# Made by 'make lock' from slurm.in; do not edit."
    compile --no-deps slurm.in
} > "$work/slurm.txt"
mv "$work/slurm.txt" slurm.txt

# The conda environment: the same pins, written out. (Not '-r run.txt': Snakemake
# copies this file elsewhere before conda reads it, and pip takes hashes either
# for all it is given or for none.)
{
    cat <<'HEAD'
# Made by 'make lock' from run.txt, torch.txt and pipeline.txt; do not edit.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11.7
  - pip=23.2.1
  - pip:
HEAD
    sed -n 's/^\([a-z0-9][^ ]*==.*[^ \\]\) *\\*$/      - "\1"/p' run.txt torch.txt pipeline.txt | sort -u
} > reproduce.yaml

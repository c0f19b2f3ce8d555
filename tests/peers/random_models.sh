# Random models for checks that decode in RAM; sourced, in the folder of the sources.
# Sets: bin, python, work (the folder given, or a temporary one that goes with the shell).
bin=$EXPERTIER_BUILD/bin
python=${PYTHON:-python3}
work=${1:-}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
"$python" -c 'import numpy' 2>/dev/null ||
    { echo "skipped: $python has no numpy to make a model with (PYTHON=... names another)"; exit 77; }

model_of() { # NAME GEOMETRY [argument of make_model.py...]: $work/NAME, unless it is there
    local name=$1 geometry=$2; shift 2
    [ -d "$work/$name" ] && return
    "$python" tests/peers/make_model.py "$work/$name.part" --geometry "$geometry" --tokenizer models/pebble "$@" >/dev/null 2>&1
    mv "$work/$name.part" "$work/$name"
}

random_model() { # NAME EXPERTS: the baseline geometry with 5 layers
    model_of "$1" baseline --layers 5 --experts "$2"
}

quantised_models() { # NAME: of $work/NAME $work/int8 and $work/int4, unless they are there
    local to
    for to in int8:128 int4:32; do
        [ -d "$work/${to%:*}" ] || "$bin/tier-pack" quantize --quiet "$work/$1" "$work/${to%:*}" --to "${to%:*}" \
            --group "${to#*:}" --allow-larger >/dev/null
    done
}

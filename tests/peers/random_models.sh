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

random_model() { # NAME EXPERTS: $work/NAME, the baseline geometry with 5 layers, unless it is there
    [ -d "$work/$1" ] && return
    "$python" tests/peers/make_model.py "$work/$1.part" --geometry baseline --layers 5 --experts "$2" \
        --tokenizer models/pebble >/dev/null 2>&1
    mv "$work/$1.part" "$work/$1"
}

quantised_models() { # NAME: of $work/NAME $work/int8 and $work/int4, unless they are there
    local to
    for to in int8:128 int4:32; do
        [ -d "$work/${to%:*}" ] || "$bin/tier-pack" quantize --quiet "$work/$1" "$work/${to%:*}" --to "${to%:*}" \
            --group "${to#*:}" --allow-larger >/dev/null
    done
}

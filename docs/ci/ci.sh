#!/usr/bin/env bash
# Written by `pytest-infer init --ci`, and explained in pytest-infer's docs/ci.md, whose tests run it. Now it is yours.
#
#   bash bench/ci.sh pull-request BASE       hold this checkout against a commit: ends with the gate's exit code
#   bash bench/ci.sh comment github|gitlab   then, with the job's token: the comment on the pull request
#   bash bench/ci.sh main                    measure this commit, and add it to the history on a branch of its own
#
# INFER_OUTPUT: the folder for what is worth keeping of a job, also of one that failed (inference-output)
# INFER_BRANCH: the branch that holds the history (inference-results)
# INFER_AGAIN:  how long each prompt that could not be told is measured again (3min); empty: it is not
# INFER_TOKEN:  what may push that branch, where git itself is not logged in
set -euo pipefail
cd "$(dirname "$0")/.."
output=${INFER_OUTPUT:-inference-output}
branch=${INFER_BRANCH:-inference-results}
again=${INFER_AGAIN-3min}

# The environment of what is measured holds no token.
measure() {
  env -u INFER_TOKEN -u GITHUB_TOKEN -u GITLAB_TOKEN -u CI_JOB_TOKEN -u CI_REPOSITORY_URL \
    pytest --benchmark-autosave "$@"
}

# No argument and no file holds the token.
logged_in() {
  if [ -n "${INFER_TOKEN:-}" ]; then
    # shellcheck disable=SC2016
    set -- -c credential.helper= -c 'credential.helper=!f() { echo username=x-access-token; echo "password=$INFER_TOKEN"; }; f' "$@"
  fi
  GIT_TERMINAL_PROMPT=0 git "$@"
}

# A token that stands in the address, as GitLab puts its own there, would be used before ours.
origin() {
  local address
  address=$(git remote get-url origin)
  if [ -n "${INFER_TOKEN:-}" ]; then
    address=$(sed -E 's#^(https?://)[^/@]*@#\1#' <<< "$address")
  fi
  echo "$address"
}

begin() {
  mkdir -p "$output"
  rm -f "$output"/comment.md "$output"/report*.html
  # None of it is ever committed here.
  echo '*' > "$output/.gitignore"
}

stored() {
  find "$output" -path '*/runs/*/[0-9]*_*.json' | wc -l
}

pull_request() {
  local base=$1 code=0 begun before
  begin
  begun=$(stored)
  if git rev-parse --verify --quiet "$base^{commit}" > /dev/null && ! git cat-file -e "$base:./bench" 2> /dev/null; then
    echo "$base has no bench/: this commit is measured, and compared with nothing"
    measure bench --infer-gate=off --benchmark-storage="$output/runs" --infer-report="$output/report.html"
    return
  fi
  measure bench --infer-against="$base" --benchmark-storage="$output/runs" --infer-report="$output/report.html" || code=$?
  runs=(latest)
  if [ "$code" -eq 10 ] && [ -n "$again" ] &&
    pytest-infer undecided --storage="$output/runs" > "$output/undecided.txt"; then
    code=0
    before=$(stored)
    measure_again "$base" || code=$?
    if [ "$(stored)" -gt "$before" ]; then runs=(latest~1 latest); fi
  fi
  echo "${runs[*]}" > "$output/commented.txt"
  [ "$(stored)" -gt "$begun" ] || return "$code"
  pytest-infer comment "${runs[@]}" --storage="$output/runs" --output="$output/comment.md" ||
    { [ $? -ne 11 ] || echo "no comment: nothing was gated"; }
  return "$code"
}

# Those alone that the gate could not tell; all others passed.
measure_again() {
  local tests=() name
  while IFS= read -r name; do tests+=("$name"); done < "$output/undecided.txt"
  printf 'measured again, with more time: %s\n' "${tests[@]}"
  measure "${tests[@]}" --infer-against="$1" --infer-time="$again" --benchmark-storage="$output/runs" \
    --infer-report="$output/report-again.html"
}

comment() {
  if [ -f "$output/comment.md" ]; then
    read -ra runs < "$output/commented.txt"
    pytest-infer comment "${runs[@]}" --storage="$output/runs" --post="$1"
  fi
}

main() {
  local code=0 told=0
  begin
  rm -rf "$output/history"
  logged_in ls-remote --exit-code --heads "$(origin)" "refs/heads/$branch" > /dev/null || code=$?
  case $code in
    0) logged_in clone --quiet --depth=1 --branch="$branch" "$(origin)" "$output/history" ;;
    2)
      git init --quiet --initial-branch="$branch" "$output/history"
      git -C "$output/history" remote add origin "$(origin)"
      echo '.journal/' > "$output/history/.gitignore"
      ;;
    *) return "$code" ;;
  esac
  code=0
  # One commit is no judge of the next: the history is, below.
  measure bench --infer-gate=off --benchmark-storage="$output/history" --infer-report="$output/report.html" || code=$?
  push
  pytest-infer history --change-points --storage="$output/history" | tee "$output/history.txt" || told=$?
  if [ "$code" -eq 0 ]; then code=$told; fi
  return "$code"
}

# Each run is a file of its own, so that two jobs at once are both kept.
push() {
  local history=$output/history
  local ours=(-c user.name=pytest-infer -c user.email=pytest-infer@localhost -c commit.gpgsign=false)
  git -C "$history" add --all
  git -C "$history" diff --cached --quiet && return
  git -C "$history" "${ours[@]}" commit --quiet -m "Measure $(git rev-parse --short HEAD)"
  for _ in 1 2 3; do
    if logged_in -C "$history" push --quiet origin "HEAD:$branch"; then
      return
    fi
    logged_in -C "$history" "${ours[@]}" pull --quiet --rebase origin "$branch"
  done
  return 1
}

case "${1:-}:$#" in
  pull-request:2) pull_request "$2" ;;
  comment:2) comment "$2" ;;
  main:1) main ;;
  *)
    sed -n '4,6s/^#   //p' "$0" >&2
    exit 2
    ;;
esac

"""Curves of several training runs in one SVG: safety, refusal and helpfulness of the samples, step by step.

    python benches/curves.py guard-only=runs/guard-only hybrid=runs/hybrid > curves.svg

Each line is the mean over nine steps around; the thin line behind it is the steps themselves. Standard library only.
"""

import json
import pathlib
import sys

PANELS = [("safety_rate", "safe samples"), ("refusal_rate", "refusing samples"), ("helpfulness_mean", "helpfulness")]
COLOURS = ["#b4442c", "#2b6cb0", "#4d7c0f", "#7c3aed"]
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 170, 44, 40, 66
WINDOW = 4


def main():
    runs = [argument.split("=", 1) for argument in sys.argv[1:]]
    if not runs or any(len(run) != 2 for run in runs):
        sys.exit(__doc__)
    metrics = {name: rows(folder) for name, folder in runs}
    whole = len(PANELS) * (WIDTH + GAP)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {TOP + HEIGHT + 34}" font-family="sans-serif" font-size="12">')
    print(f'<rect width="{whole}" height="{TOP + HEIGHT + 34}" fill="white"/>')
    for index, (name, colour) in enumerate(zip(metrics, COLOURS)):
        print(f'<text x="{LEFT + 130 * index}" y="14" fill="{colour}" font-weight="bold">{name}</text>')
    for index, (key, title) in enumerate(PANELS):
        panel(LEFT + index * (WIDTH + GAP), key, title, metrics)
    print("</svg>")


def rows(folder):
    with open(pathlib.Path(folder) / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def panel(left, key, title, metrics):
    points = {name: [(row["step"], row[key]) for row in run if row.get(key) is not None] for name, run in metrics.items()}
    values = [value for run in points.values() for _, value in run]
    low, high = (0.0, 1.0) if key.endswith("rate") else (min(values), max(values))
    last = max(step for run in points.values() for step, _ in run)

    def place(step, value):
        return f"{left + WIDTH * step / last:.1f},{TOP + HEIGHT * (high - value) / (high - low):.1f}"

    print(f'<text x="{left}" y="{TOP - 8}">{title}</text>')
    for share in (0.0, 0.5, 1.0):
        value, y = low + share * (high - low), TOP + HEIGHT * (1 - share)
        label = f"{value:.0%}" if key.endswith("rate") else f"{value:.1f}"
        print(f'<path d="M{left},{y}h{WIDTH}" stroke="#ddd"/><text x="{left - 4}" y="{y + 4}" text-anchor="end" fill="#666">{label}</text>')
    print(f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 18}" text-anchor="end" fill="#666">step {last}</text>')
    for (_, run), colour in zip(points.items(), COLOURS):
        smooth = [(step, mean(value for _, value in run[max(0, at - WINDOW) : at + WINDOW + 1])) for at, (step, _) in enumerate(run)]
        for line, style in ((run, 'stroke-width="1" opacity="0.25"'), (smooth, 'stroke-width="2"')):
            path = " ".join(place(step, value) for step, value in line)
            print(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')


def mean(values):
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()

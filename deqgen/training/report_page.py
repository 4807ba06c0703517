"""What surrounds the content of a report: the page and its style."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --text: #1c2024; --soft: #60646c; --line: #d9d9e0; --accent: #0b68cb;
}
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --text: #edeef0; --soft: #b0b4ba; --line: #363a3f; --accent: #70b8ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: 0 0 .75rem; }
.lead, figcaption, summary { color: var(--soft); }
figure { margin: 0; min-width: 0; }
.curves, .grids { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
.grids img { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; }
figcaption { font-size: .85rem; margin-top: .25rem; }
svg { display: block; width: 100%; height: auto; fill: var(--soft);
  font: 13px system-ui, sans-serif; }
svg .title { fill: var(--text); font-weight: 600; font-size: 14px; }
svg .x { text-anchor: middle; }
svg .y { text-anchor: end; }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .curve { stroke: var(--accent); stroke-width: 1.75; stroke-linejoin: round; fill: none; }
svg .last { fill: var(--accent); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
.wide th, .wide td { text-align: right; white-space: nowrap; }
th { font-weight: 500; color: var(--soft); }
.settings { width: 100%; }
.settings th { width: 34%; min-width: 9rem; }
.settings td { overflow-wrap: anywhere; }
details { margin: .5rem 0; }
summary { cursor: pointer; margin-bottom: .5rem; }
"""

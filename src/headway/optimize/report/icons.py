"""The few small pictures of the page, drawn by hand as inline SVG."""

from __future__ import annotations

from headway.optimize.report.markup import Markup

BRAND = Markup(
    '<svg width="20" height="20" viewBox="0 0 20 20" aria-hidden="true"><path d="M2 16 L8 9 L12 12 L18 3" fill="none" '
    'stroke="var(--winner)" stroke-width="2.4" stroke-linecap="round" stroke-linejoin="round"/>'
    '<circle cx="18" cy="3" r="2" fill="var(--winner)"/></svg>'
)
CHECK = Markup(
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 13l5 5L20 6" fill="none" stroke="currentColor" '
    'stroke-width="3.4" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)
CROSS = Markup(
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 5l14 14M19 5L5 19" fill="none" stroke="currentColor" '
    'stroke-width="3.4" stroke-linecap="round"/></svg>'
)
DOT = Markup('<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="6" fill="currentColor"/></svg>')
FAVICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 20 20'%3E%3Cpath d='M2 16 L8 9 L12 12 "
    "L18 3' fill='none' stroke='%231f5fd1' stroke-width='2.6' stroke-linecap='round'/%3E%3C/svg%3E"
)

_STAR = "M7,0.1L8.9,5.2L14,5.4L10,8.4L11.4,13.4L7,10.5L2.6,13.4L4,8.4L0,5.4L5.1,5.2Z"  # ten corners round the middle


def _mark(inside: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 14 14" aria-hidden="true">{inside}</svg>')


MARKS = {
    "winner": _mark(f'<path d="{_STAR}" fill="var(--winner)"/>'),
    "baseline": _mark('<path d="M7 1L13 7L7 13L1 7Z" fill="var(--base)"/>'),
    "front": _mark('<circle cx="7" cy="7" r="5.5" fill="var(--front)"/>'),
    "measured": _mark('<circle cx="7" cy="7" r="4.5" fill="var(--faint)"/>'),
    "predicted": _mark('<circle cx="7" cy="7" r="4" fill="none" stroke="var(--guess)" stroke-width="1.5"/>'),
    "limit": _mark('<path d="M0 7H14" stroke="var(--ok)" stroke-width="1.6" stroke-dasharray="4 3"/>'),
    "allowed": _mark(
        '<rect width="14" height="14" rx="2" fill="var(--ok-wash)" stroke="var(--ok)" stroke-width=".6"/>'
    ),
    "noise": _mark('<rect y="3" width="14" height="8" rx="2" fill="var(--noise)"/>'),
    "better": _mark(
        '<path d="M0 7H14" stroke="var(--ok)" stroke-width="2.4"/><circle cx="7" cy="7" r="4" fill="var(--ok)"/>'
    ),
    "worse": _mark(
        '<path d="M0 7H14" stroke="var(--bad)" stroke-width="2.4"/><rect x="3.4" y="3.4" width="7.2" height="7.2" '
        'fill="var(--bad)"/>'
    ),
    "none": _mark(
        '<path d="M0 7H14" stroke="var(--muted)" stroke-width="2.4"/>'
        '<path d="M7 2L12 7L7 12L2 7Z" fill="var(--muted)"/>'
    ),
    "arm-baseline": _mark('<rect y="2" width="14" height="10" rx="3" fill="var(--base)"/>'),
    "arm-again": _mark('<rect y="2" width="14" height="10" rx="3" fill="var(--again)"/>'),
    "arm-candidate": _mark('<rect y="2" width="14" height="10" rx="3" fill="var(--winner)"/>'),
    "line": _mark('<path d="M0 7H14" stroke="var(--muted)" stroke-width="2.4"/>'),
    "dashed": _mark('<path d="M0 7H14" stroke="var(--muted)" stroke-width="2.4" stroke-dasharray="4 2.5"/>'),
    "band": _mark('<path d="M0 14L14 2V8L6 14Z" fill="var(--noise)"/><path d="M0 14L14 3" stroke="var(--muted)"/>'),
}


def rate(colour: int) -> Markup:
    """The colour of a rate: 1 (the lowest) to 6."""
    return _mark(f'<rect y="4" width="14" height="6" rx="3" fill="var(--rate-{colour})"/>')


def swatch(bits: str) -> Markup:
    """The colour of a class of bits per weight: 2, 3, 4, 6, 8 or 16."""
    return _mark(f'<rect width="14" height="14" rx="3" fill="var(--bits-{bits})"/>')

"""Verdicts on claims: necessity, sufficiency, dose response and specificity against matched random components."""

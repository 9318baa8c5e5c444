"""Figures as plain data, and how they are drawn: PNG (`png.draw_png`) and HTML (`html.write_html`)."""

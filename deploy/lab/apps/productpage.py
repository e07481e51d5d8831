"""The page that people look at: a book, its details and its reviews, each from its own service."""

import html
import os

import web

DETAILS = web.Service(os.environ.get("DETAILS_HOSTNAME", "details"))
REVIEWS = web.Service(os.environ.get("REVIEWS_HOSTNAME", "reviews"))

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Simple Bookstore App</title></head>
<body><h1>The Comedy of Errors</h1>
<h2>Book Details</h2>{details}
<h2>Book Reviews</h2>{reviews}
</body></html>
"""


def fetch(service, path, headers):
    try:
        return service.get(path, headers), ""
    except web.Unavailable as error:
        return None, str(error)


def details_html(details, why):
    if details is None:
        return f"<p>Error fetching product details: {html.escape(why)}</p>"
    return "<dl>" + "".join(f"<dt>{html.escape(k)}<dd>{html.escape(str(v))}" for k, v in details.items()) + "</dl>"


def reviews_html(reviews, why):
    if reviews is None:
        return f"<p>Error fetching product reviews: {html.escape(why)}</p>"
    parts = []
    for review in reviews["reviews"]:
        rating = review.get("rating", {})
        stars = f' <span style="color:{rating["color"]}">{"★" * rating["stars"]}</span>' if "stars" in rating else ""
        error = f" <em>{html.escape(rating['error'])}</em>" if "error" in rating else ""
        text = html.escape(review["text"])
        parts.append(f"<blockquote>{text}<footer>{html.escape(review['reviewer'])}{stars}{error}</footer></blockquote>")
    return "".join(parts) + f"<p>Reviews served by: {html.escape(reviews['podname'])} ({reviews['version']})</p>"


def answer(path, headers):
    path = path.partition("?")[0]
    if path == "/health":
        return {"status": "productpage is healthy"}
    if path == "/api/v1/products/0":
        return fetch_all(headers)
    if path in ("/", "/productpage"):
        details, no_details = fetch(DETAILS, "/details/0", headers)
        reviews, no_reviews = fetch(REVIEWS, "/reviews/0", headers)
        return PAGE.format(details=details_html(details, no_details), reviews=reviews_html(reviews, no_reviews))
    return None


def fetch_all(headers):
    """For programs: everything, or 503 with the service that did not answer."""
    return {"details": DETAILS.get("/details/0", headers), "reviews": REVIEWS.get("/reviews/0", headers)}


web.serve(answer)

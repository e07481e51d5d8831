"""What readers wrote about a book: v1 without stars; v2 with black ones, v3 with red ones, both from `ratings`."""

import os

import web

VERSION = os.environ.get("SERVICE_VERSION", "v1")
COLOUR = {"v2": "black", "v3": "red"}.get(VERSION)
RATINGS = web.Service(os.environ.get("RATINGS_HOSTNAME", "ratings"))

TEXTS = {
    "Reviewer1": "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!",
    "Reviewer2": "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays.",
}


def answer(path, headers):
    if path == "/health":
        return {"status": "reviews is healthy"}
    _, what, number = [*path.split("/"), "", ""][:3]
    if what != "reviews" or not number.isdigit():
        return None
    reviews = [{"reviewer": name, "text": text} for name, text in TEXTS.items()]
    if COLOUR:
        try:
            stars = RATINGS.get(f"/ratings/{number}", headers)["ratings"]
        except web.Unavailable:
            stars = {}
        for review in reviews:
            found = stars.get(review["reviewer"])
            review["rating"] = (
                {"stars": found, "color": COLOUR} if found else {"error": "Ratings service is currently unavailable"}
            )
    return {"id": number, "podname": os.environ.get("HOSTNAME", ""), "version": VERSION, "reviews": reviews}


web.serve(answer)

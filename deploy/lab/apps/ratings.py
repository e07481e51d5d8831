"""Stars that readers gave a book."""

import web


def answer(path, headers):
    if path == "/health":
        return {"status": "ratings is healthy"}
    _, what, number = [*path.split("/"), "", ""][:3]
    if what != "ratings" or not number.isdigit():
        return None
    return {"id": int(number), "ratings": {"Reviewer1": 5, "Reviewer2": 4}}


web.serve(answer)

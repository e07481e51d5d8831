"""Facts about a book."""

import web


def answer(path, headers):
    if path == "/health":
        return {"status": "details is healthy"}
    _, what, number = [*path.split("/"), "", ""][:3]
    if what != "details" or not number.isdigit():
        return None
    return {
        "id": int(number),
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    }


web.serve(answer)

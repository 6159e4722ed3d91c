# What README's first command does, in a container: docker build -t sightline . && docker run --rm sightline
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /sightline
COPY . .
RUN make install
CMD ["make", "demo"]

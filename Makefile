# What one types most. Everything here is an ordinary command of Go; see .ci/run for all that is checked.

.PHONY: build dev test compat check versus

build: ## the static binary, bin/trivet, and the names of etcd's tools beside it
	CGO_ENABLED=0 go build -trimpath -o bin/trivet ./cmd/trivet
	ln -sf trivet bin/etcd
	ln -sf trivet bin/etcdctl
	ln -sf trivet bin/etcdutl

dev: ## three members on this machine
	go run ./cmd/trivet dev

test: ## the quick tests
	go test -short ./...

compat: ## the same calls to etcd and to Trivet, and the same answers
	go test -C test/compat -count 1 -v .

check: ## everything that must hold before a change is taken
	.ci/run

versus: ## measure beside etcd, half an hour; ARGS='--only put --rounds 5' for less, see docs/performance.md
	go run ./bench/versus $(ARGS)
